"""How verbs end: bugs, interruptions, clean stdout, what JSON can hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medplat import ending
from medplat.cli import cli
from medplat.commands import Outcome, doctor
from medplat.errors import Refused, WorkflowError

MARKER = "DOE^JANE-19700101"


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(project: Path) -> Outcome:
        patient = MARKER
        try:
            raise KeyError(patient)
        except KeyError as cause:
            raise error from cause

    monkeypatch.setattr(doctor, "run", run)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_bug_is_one_line_and_a_log_without_identifiers(
    medplat: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    raising(monkeypatch, ValueError(f"cannot convert '{MARKER}'"))
    shown = medplat("doctor", *(["--json"] if as_json else []))
    assert shown.code == 1
    assert len(shown.err.splitlines()) == 1
    assert "a bug in medplat (ValueError)" in shown.err
    logs = list((project / ".medplat" / "logs").iterdir())
    assert len(logs) == 1
    assert str(logs[0]) in shown.err
    text = logs[0].read_text()
    assert "in run" in text
    assert "builtins.KeyError" in text
    assert "builtins.ValueError" in text
    assert MARKER not in text + shown.err + shown.out
    if as_json:
        assert shown.json()["exit_code"] == 1
        assert shown.json()["log"] == str(logs[0])


def test_what_python_itself_says_of_the_code_is_kept(
    medplat: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "run", lambda: None)
    assert medplat("doctor").code == 1
    log = next((project / ".medplat" / "logs").iterdir()).read_text()
    assert "unexpected keyword argument 'project'" in log


def test_an_interruption_is_130(
    medplat: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert medplat("doctor").code == 130
    assert medplat("doctor", "--json").json()["exit_code"] == 130


def test_errors_of_the_user_have_no_log(
    medplat: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, WorkflowError(["w.yaml:1:1: a: b", "w.yaml:2:1: c: d"]))
    shown = medplat("doctor")
    assert (shown.code, shown.out, shown.err) == (2, "", "w.yaml:1:1: a: b\nw.yaml:2:1: c: d\n")
    assert medplat("doctor", "--json").json()["error"]["problems"] == [
        "w.yaml:1:1: a: b",
        "w.yaml:2:1: c: d",
    ]
    raising(monkeypatch, Refused("NO_INPUT", "nothing"))
    assert medplat("doctor").code == 2
    assert not (project / ".medplat" / "logs").exists()


def test_a_package_that_is_absent_is_named_with_the_command(
    medplat: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    shown = medplat("doctor")
    assert shown.code == 2
    assert shown.err == (
        "medplat: medplat doctor needs torch, which is not installed: pip install 'medplat[ml]'\n"
    )


def test_json_keeps_stdout_to_itself(
    medplat: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(project: Path) -> Outcome:
        sys.stdout.write("from Python\n")
        os.write(1, b"from C\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        values = {
            "path": Path("a") / "b", "nan": float("nan"), "inf": np.float32("inf"),
            "int": np.int64(3), "list": (1.5, None, True), "text": "Läsion", 7: {"x"},
        }  # fmt: skip
        return Outcome(4, values, "text")

    monkeypatch.setattr(doctor, "run", run)
    shown = medplat("doctor", "--json")
    assert shown.code == 4
    assert shown.json() == {
        "path": "a/b", "nan": None, "inf": None, "int": 3, "list": [1.5, None, True],
        "text": "Läsion", "7": ["x"],
    }  # fmt: skip
    for words in ("from Python", "from C", "from a child"):
        assert words in shown.err
    assert medplat("doctor").out.endswith("text\n")


def test_a_reader_that_goes_away_is_no_error(project: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "with subprocess.Popen([sys.executable, '-m', 'medplat', 'show', 'schema'],\n"
        "                      stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:\n"
        "    child.stdout.read(10); child.stdout.close()\n"
        "    said = child.stderr.read()\n"
        "assert child.returncode == 0 and not said, (child.returncode, said)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_quiet_leaves_errors(medplat: Callable[..., Any], project: Path) -> None:
    assert medplat("-q").code == 2
    assert "nothing is called" in medplat("show", "zzzz", "-q").err
    assert ending.run(cli, ["--version"]) == 0
