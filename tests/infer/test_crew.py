"""The parent's side of the worker, with a worker that needs no model: order, limits, deaths."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from medplat.errors import ModelError
from medplat.infer import crew as module
from medplat.infer import worker
from medplat.infer.crew import Crew
from medplat.infer.jobs import Job, Result

FAKE = """
import os, time
from pathlib import Path
from medplat.infer.jobs import Result
from medplat.infer.worker import END, READY, REFUSED, START, Probe

def main(connection, diary):
    diary = Path(diary)
    with diary.open("a") as file:
        file.write("load\\n")
    if "refuse" in diary.name:
        connection.send((REFUSED, "no such network"))
        return
    if "dead" in diary.name:
        os._exit(7)
    connection.send((READY, Probe("cpu", (8, 8, 8), 1, 0.1, 100.0, 8)))
    while (job := connection.recv()) is not None:
        connection.send((START, job.case, 123.0))
        if job.case.startswith("hang"):
            time.sleep(600)
        once = diary.with_name(job.case)
        if job.case.startswith("die") or (job.case.startswith("once") and not once.exists()):
            once.touch()
            os._exit(7)
        connection.send((END, job.case, Result("done")))
"""


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_infer_worker.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fake_infer_worker", raising=False)
    import fake_infer_worker  # type: ignore[import-not-found]

    monkeypatch.setattr(worker, "main", fake_infer_worker.main)
    return tmp_path / "diary"


def run(diary: Path, cases: list[str], timeout: float = 30.0) -> tuple[list[Any], int]:
    ended: list[tuple[str, Result]] = []
    crew = Crew(
        str(diary),  # type: ignore[arg-type]
        timeout,
        lambda job, result: ended.append((job.case, result)),
        lambda probe: None,
    )
    try:
        for case in cases:
            crew.submit(Job(case, "", "nifti", (), Path(), (), {}, {}))
        crew.finish()
    finally:
        crew.stop()
    return ended, diary.read_text().count("load")


def test_jobs_end_in_order_with_one_load(diary: Path) -> None:
    ended, loads = run(diary, list("abcde"))
    assert [case for case, _ in ended] == list("abcde")
    assert all(result.status == "done" for _, result in ended)
    assert loads == 1


def test_a_hanging_case_is_ended_and_the_rest_goes_on(diary: Path) -> None:
    started = time.monotonic()
    ended, loads = run(diary, ["a", "hang", "b", "c"], timeout=0.5)
    assert [(case, result.code) for case, result in ended] == [
        ("a", ""),
        ("hang", "TIMEOUT"),
        ("b", ""),
        ("c", ""),
    ]
    assert "longer than 0.5 s" in ended[1][1].message
    assert loads == 2
    assert time.monotonic() - started < 30


def test_a_case_that_kills_its_worker_is_tried_twice_and_alone(diary: Path) -> None:
    ended, loads = run(diary, ["a", "die", "b", "once", "c"])
    codes = {case: result.code for case, result in ended}
    assert codes == {"a": "", "die": "WORKER_DIED", "b": "", "once": "", "c": ""}
    assert loads == 4  # at first, after each death of `die`, after that of `once`
    died = dict(ended)["die"]
    assert died.status == "failed"
    assert "twice on this case: exit code 7" in died.message
    assert "123 MB" in died.message


def test_a_model_that_cannot_be_loaded_ends_the_run(diary: Path) -> None:
    with pytest.raises(ModelError, match="no such network"):
        run(diary.with_name("refuse"), ["a"])
    with pytest.raises(ModelError, match="twice while it loaded the model: exit code 7"):
        run(diary.with_name("dead"), ["a"])


def test_a_model_that_never_loads_ends_the_run(
    diary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.0)
    with pytest.raises(ModelError, match="not loaded within"):
        run(diary, ["a"], timeout=0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_causes_in_words() -> None:
    assert worker.cause(-9).startswith("signal 9 (SIGKILL, as the system does")
    assert worker.cause(-11) == "signal 11 (SIGSEGV)"
    assert worker.cause(3) == "exit code 3"
