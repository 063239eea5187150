"""The verb as a user runs it, in processes of its own: isolation, time limits, kill -9, resume."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="kill -9"),
]
MEDPLAT = Path(sys.executable).with_name("medplat")


class Verb:
    def __init__(self, model: Path, source: Path, out: Path, *more: str) -> None:
        self.out = out
        self.command = [str(MEDPLAT), "infer", "-m", str(model), "-i", str(source), "-o", str(out)]
        self.command += ["--json", *more]

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command, capture_output=True, text=True, timeout=280)

    def lines(self) -> list[dict[str, Any]]:
        text = (self.out / "manifest.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def last(self) -> dict[str, dict[str, Any]]:
        return {line["case"]: line for line in self.lines()}

    def files(self) -> dict[str, bytes]:
        """Everything in the folders of the cases."""
        return {
            path.relative_to(self.out).as_posix(): path.read_bytes()
            for path in self.out.glob("case-*/*")
        }


def count(diary: Path) -> Counter[str]:
    return Counter(diary.read_text().split())


def test_twenty_cases_of_which_five_fail_in_five_ways(
    make_model: Callable[..., Path], write_study: Any, project: Path, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    export = tmp_path / "export"
    for study in range(15):
        write_study(export, study)
    cut = write_study(export, 15)[-1]
    cut.write_bytes(cut.read_bytes()[:-60])
    write_study(export, 16)[2].unlink()
    for study, mark in ((17, 9001), (18, 9002), (19, 9003)):
        write_study(export, study, mark=mark)
    verb = Verb(make_model(diary=diary), export, tmp_path / "out", "--timeout", "15")
    diary.unlink()  # building the model wrote into it
    done = verb.run()
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout)
    assert summary["counts"] == {
        "done": 15, "unchanged": 0, "skipped": 0, "rejected": 2, "failed": 3,
    }  # fmt: skip
    assert summary["exit_code"] == 3
    assert summary["resume"].startswith("medplat infer -m ")
    assert done.stderr.count(f"resume with: {summary['resume']}\n") == 2
    codes = sorted(line["error"]["code"] for line in verb.last().values() if line["error"])
    assert codes == ["MISSING_SLICE", "MODEL_FAILED", "TIMEOUT", "TRUNCATED", "WORKER_DIED"]
    died = next(one for one in verb.last().values() if one["status"] == "failed"
                and one["error"]["code"] == "WORKER_DIED")  # fmt: skip
    assert "signal 9 (SIGKILL" in died["error"]["message"]
    for case, line in verb.last().items():
        names = {path.name for path in (verb.out / case).iterdir()}
        whole = {"seg.nii.gz", "seg.dcm", "result.json", "overlay.png"}
        assert names == (whole if line["status"] == "done" else {"result.json"})
    assert count(diary) == {"load": 4, "case": 15 + 1 + 1 + 2}
    rows = list(csv.DictReader((verb.out / "results.csv").read_text().splitlines()))
    assert len(rows) == 20
    assert sum(bool(row["lesion_ml"]) for row in rows) == 15

    before, seen = verb.files(), count(diary)
    again = verb.run()
    assert again.returncode == 3
    assert json.loads(again.stdout)["counts"] == {
        "done": 0, "unchanged": 15, "skipped": 0, "rejected": 2, "failed": 3,
    }  # fmt: skip
    assert count(diary) == seen  # no model was loaded
    assert verb.files() == before
    text = done.stdout + done.stderr + again.stderr + (verb.out / "report.html").read_text()
    assert "Secret" not in text


def test_kill_9_and_the_same_command_again(
    make_model: Callable[..., Path],
    write_study: Any,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    diary, export = tmp_path / "diary", tmp_path / "export"
    for study in range(8):
        write_study(export, study)
    model = make_model(diary=diary)
    undisturbed = Verb(model, export, tmp_path / "one")
    assert undisturbed.run().returncode == 0
    diary.unlink()
    monkeypatch.setenv("SLOW_CASES", "1.0")
    verb = Verb(model, export, tmp_path / "two")
    process = subprocess.Popen(verb.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    manifest = verb.out / "manifest.jsonl"
    deadline = time.monotonic() + 120
    while not manifest.is_file() or len(verb.lines()) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2.5)  # the worker must be gone by itself, and write nothing more
    with manifest.open("a") as file:
        file.write('{"case": "torn')
    ended = len(manifest.read_text().splitlines()) - 1
    assert 3 <= ended < 8
    done = verb.run()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["done"] == 8 - ended
    assert json.loads(done.stdout)["counts"]["unchanged"] == ended
    assert count(diary)["case"] <= 8 + 1
    finished = Counter(line["case"] for line in verb.lines() if line["status"] == "done")
    assert set(finished.values()) == {1}
    assert verb.files() == undisturbed.files()
    seen = count(diary)
    third = verb.run()
    assert json.loads(third.stdout)["counts"]["unchanged"] == 8
    assert count(diary) == seen


def test_shards_share_the_cases_and_the_table(
    make_model: Callable[..., Path], write_study: Any, project: Path, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    for study in range(6):
        write_study(export, study)
    model = make_model()
    counts = []
    for part in ("1/2", "2/2"):
        verb = Verb(model, export, tmp_path / "out", "--shard", part)
        done = verb.run()
        assert done.returncode == 0, done.stderr
        counts.append(json.loads(done.stdout)["counts"]["done"])
    assert sum(counts) == 6
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert len({row["case"] for row in rows}) == 6
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_dry_run_and_wrong_use(
    make_model: Callable[..., Path], write_study: Any, project: Path, tmp_path: Path
) -> None:
    export, out = tmp_path / "export", tmp_path / "out"
    write_study(export, 1)
    model = make_model()
    done = Verb(model, export, out, "--dry-run").run()
    assert done.returncode == 0, done.stderr
    (case,) = json.loads(done.stdout)["cases"]
    assert case["grid"] == [18, 14, 6]
    assert case["windows"] == 2
    assert case["peak_rss_mb"] > 50
    assert not out.exists()
    assert "image = series 1 'T1'" in done.stderr
    for words, sentence in (
        (["-m", "models:/nothing@best"], "not found"),
        (["--executor", "ray"], "not built yet"),
        (["--prompt", "tumour"], "--prompt is for grounding models"),
        (["-o", str(export / "results")], "choose an output folder beside it"),
    ):
        wrong = Verb(model, export, out, *words).run()
        assert wrong.returncode == 2
        assert sentence in wrong.stderr
        assert "Traceback" not in wrong.stderr
