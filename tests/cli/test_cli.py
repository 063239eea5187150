"""The verbs and options of DESIGN section 3, and what they cost before they do anything."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from medplat import ending
from medplat.cli import cli
from medplat.commands import Outcome

HEAVY = (
    "torch", "monai", "mlflow", "lightning", "pandas", "scipy", "nibabel", "pydicom", "numpy",
    "pydantic",
)  # fmt: skip
COMMON = {"--project", "--json", "--quiet"}
VERBS = {
    "demo": ([], {"--out"}),
    "convert": (["source", "out"], {
        "--workflow", "--dataset", "--set", "--labels", "--deidentify", "--split-phases",
        "--allow-shear", "--resample", "--decisions", "--keep", "--link-table", "--gzip-level",
        "--no-gzip", "--workers", "--shard", "--executor", "--dry-run"}),
    "verify": (["nifti"], {"--against", "--repair"}),
    "train": (["workflow"], {"--set", "--resume"}),
    "evaluate": (["workflow"], {"--set"}),
    "compare": (["runs"], set()),
    "import-checkpoint": (["plugin", "file"], {
        "--workflow", "--set", "--register", "--alias", "--licence", "--source"}),
    "infer": ([], {
        "--model", "--source", "--out", "--prompt", "--seg", "--workers", "--executor", "--shard",
        "--timeout", "--dry-run"}),
    "list": (["what"], set()),
    "show": (["name"], set()),
    "copy": (["workflow", "dest"], set()),
    "check": (["workflows"], {"--plugin"}),
    "doctor": ([], set()),
    "ui": ([], set()),
}  # fmt: skip


def test_the_verbs_and_options_are_those_of_the_design() -> None:
    found: dict[str, tuple[list[str], set[str]]] = {}
    for name, command in cli.commands.items():
        arguments = [str(one.name) for one in command.params if isinstance(one, click.Argument)]
        options = {one.opts[-1] for one in command.params if isinstance(one, click.Option)}
        assert options >= COMMON, name
        assert command.help, name
        assert (command.epilog or "").startswith("Example: medplat "), name
        found[name] = (arguments, options - COMMON)
    assert found == VERBS


@pytest.mark.parametrize(
    ("arguments", "module", "function"),
    [
        (["demo"], "demo", "run"),
        (["convert", ".", "out", "--workers", "2", "--shard", "2/3"], "convert", "run"),
        (["train", "w.yaml", "--set", "a=1", "--resume"], "train", "run"),
        (["evaluate", "w.yaml"], "evaluate", "run"),
        (["compare", "a", "b"], "compare", "run"),
        (["infer", "-m", "models:/a@b", "-i", ".", "-o", "out"], "infer", "run"),
        (["list"], "listing", "list_"),
        (["show", "x"], "listing", "show"),
        (["copy", "x", "y"], "listing", "copy"),
        (["check", "w.yaml"], "check", "run"),
        (["doctor"], "doctor", "run"),
        (["ui"], "ui", "run"),
    ],
)
def test_every_verb_calls_its_command_with_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
    project: Path,
    arguments: list[str],
    module: str,
    function: str,
) -> None:
    command = importlib.import_module(f"medplat.commands.{module}")
    signature = inspect.signature(getattr(command, function))
    called: list[dict[str, Any]] = []

    def catch(*given: Any, **named: Any) -> Outcome:
        bound = signature.bind(*given, **named)
        called.append(bound.arguments)
        return Outcome(3, {"n": 1})

    monkeypatch.setattr(command, function, catch)
    assert ending.run(cli, arguments) == 3
    assert len(called) == 1
    assert called[0].get("project", project) == project
    assert called[0].get("shard") in (None, (2, 3))


def test_help_imports_nothing_heavy() -> None:
    code = "from medplat.cli import main; main()"
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line for line in shown.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "click" in names
    assert names.isdisjoint(HEAVY)
    assert "convert" in shown.stdout


def test_help_is_quick() -> None:
    """CPU seconds of a whole run: the clock of a busy machine says nothing."""
    code = (
        "import sys, time\nsys.argv[1:] = ['--help']\n"
        "try:\n    from medplat.cli import main\n    main()\n"
        "finally:\n    sys.stderr.write(str(time.process_time()))\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert min(float(run.stderr) for run in runs) < 0.3


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(medplat: Callable[..., Any], verb: str) -> None:
    shown = medplat(verb, "--help")
    assert shown.code == 0
    assert "Example: medplat" in shown.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train"], "Missing argument 'WORKFLOW'"),
        (["train", "w.yaml", "--reusme"], "'--resume'"),
        (["train", "absent.yaml"], "workflow absent.yaml does not exist"),
        (["convert", "absent", "out"], "does not exist"),
        (["convert", ".", "out", "--shard", "4/3"], "is not I/N"),
        (["convert", ".", "out", "--shard", "0/3"], "is not I/N"),
        (["convert", ".", "out", "--executor", "ray"], "ray is not built yet"),
        (["infer", "-m", "x", "-i", ".", "-o", "out", "--executor", "ray"], "ray is not built yet"),
        (["verify", ".", "--against", "."], ". holds no NIfTI file"),
        (["import-checkpoint", "unet", "."], "'.' is a directory"),
        (["compare", "one"], "at least two runs"),
        (["check"], "workflow files, or --plugin"),
        (["check", "--plugin", "unt"], "Did you mean 'unet'?"),
        (["show", "unt"], "Did you mean 'unet'?"),
        (["copy", "nothing_of_this_name", "."], "unknown workflow"),
        (["list", "model"], "'model' is not one of"),
    ],
)
def test_wrong_usage_is_two_and_one_sentence(
    medplat: Callable[..., Any], project: Path, arguments: list[str], sentence: str
) -> None:
    shown = medplat(*arguments)
    assert shown.code == 2
    assert shown.out == ""
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    shown = medplat(*arguments, "--json")
    assert shown.code == 2
    found = shown.json()
    assert found["exit_code"] == 2
    assert sentence in found["error"]["message"]


def test_an_empty_command_line_shows_the_verbs(medplat: Callable[..., Any]) -> None:
    shown = medplat()
    assert shown.code == 2
    assert "convert" in shown.err


def test_the_project_is_the_nearest_or_the_given(
    medplat: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert medplat("doctor", "--json").json()["project"] == str(project)
    other = tmp_path / "other"
    assert medplat("doctor", "--json", "--project", other).json()["project"] == str(other)


def test_verbs_run_behind_a_dead_proxy(project: Path) -> None:
    dead = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy"), "http://127.0.0.1:9")
    for arguments in (["list", "--json"], ["show", "codes", "--json"]):
        shown = subprocess.run(
            [sys.executable, "-m", "medplat", *arguments],
            capture_output=True, text=True, env={**os.environ, **dead}, check=False,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)
