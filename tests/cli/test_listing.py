"""list, show, copy, check, doctor, ui as a user sees them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from medplat import registry
from medplat.commands import ui
from medplat.dicom.codes import CODES
from medplat.workflow import read, tree, write

THREE = """kind: train
dataset: {name: phantom, root: p}
transforms:
  - Spacingd: {keys: image, pixdim: 1, modes: nearest}
task: {kind: segment, labels: [{name: a, value: 1}]}
model: {name: wau_umet}
train: {epochs: 3, bach_size: 2}
"""


def test_lists_name_everything(medplat: Callable[..., Any], project: Path) -> None:
    shown = medplat("list", "--json").json()
    assert [one["name"] for one in shown["models"]] == registry.model_names()
    assert [one["name"] for one in shown["datasets"]] == registry.dataset_names()
    assert [one["name"] for one in shown["workflows"]] == list(registry.workflows())
    text = medplat("list", "models").out
    assert "unet" in text
    assert "datasets:" not in text


def test_registered_models_are_listed_with_their_aliases(
    medplat: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medplat.errors import UsageError
    from medplat.track import registry as registered

    assert "registered" not in medplat("list", "models", "--json").json()
    store = project / ".medplat" / "tracking"
    store.mkdir()
    (store / "mlflow.db").touch()
    row = registered.Registered("lesion", "3", ("candidate",), "unet", "abc", "00")
    monkeypatch.setattr(registered, "list_models", lambda folder: [row] * (folder == project))
    assert "models:/lesion/3  unet candidate" in medplat("list", "models").out
    assert "registered" not in medplat("list").out

    def unreachable(folder: Path) -> None:
        raise UsageError("the server does not answer")

    monkeypatch.setattr(registered, "list_models", unreachable)
    shown = medplat("list", "models")
    assert shown.code == 0
    assert "does not answer" in shown.err


def test_codes_are_the_table_of_the_code(medplat: Callable[..., Any], project: Path) -> None:
    assert [one["name"] for one in medplat("show", "codes", "--json").json()["codes"]] == list(
        CODES
    )
    text = medplat("show", "codes").out
    assert all(code in text for code in CODES)


def test_a_plugin_shows_its_card_and_keys(medplat: Callable[..., Any], project: Path) -> None:
    shown = medplat("show", "unet", "--json").json()
    assert shown["card"]["fidelity"] in ("verified", "reconstruction", "inspired")
    assert "channels" in shown["config"]["properties"]
    text = medplat("show", "phantom").out
    assert "keys under `dataset:`" in text


def test_a_workflow_is_copied_once(medplat: Callable[..., Any], project: Path) -> None:
    name, path = next(iter(registry.workflows().items()))
    assert medplat("copy", name, project).code == 0
    assert (project / path.name).read_bytes() == path.read_bytes()
    again = medplat("copy", name, project / path.name)
    assert again.code == 2
    assert "exists" in again.err
    assert medplat("copy", name, project / "new" / "mine.yaml").code == 0
    assert (project / "new" / "mine.yaml").exists()
    assert medplat("show", name).out.rstrip() == path.read_text().rstrip()


def test_the_schema_accepts_shipped_workflows_and_refuses_mistakes(
    medplat: Callable[..., Any], project: Path
) -> None:
    schema = medplat("show", "schema", "--json").json()
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    for name, path in registry.workflows().items():
        checker.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        workflow = read.read(path, plugins=False)
        checker.validate(tree.parse(write.dump(workflow), name).value)
    good = yaml.safe_load(THREE)
    assert not checker.is_valid(good)
    good["train"] = {"epochs": 3}
    del good["transforms"][0]["Spacingd"]["modes"]
    checker.validate(good)
    good["transforms"] = [{"LoadImaged": {"keys": "image"}}]
    assert not checker.is_valid(good)
    assert "unet" in schema["$defs"]["Model"]["properties"]["name"]["examples"]


def test_three_mistakes_are_three_lines_and_cost_no_heavy_import(project: Path) -> None:
    path = project / "three.yaml"
    path.write_text(THREE)
    code = (
        "import sys, time\nfrom medplat import ending\nfrom medplat.cli import cli\n"
        f"code = ending.run(cli, ['check', {str(path)!r}])\n"
        "heavy = [m for m in ('torch', 'monai', 'mlflow', 'lightning') if m in sys.modules]\n"
        "sys.stderr.write(str(time.process_time()))\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2, shown.stderr
    lines = shown.stdout.splitlines()
    assert (
        lines[0]
        == f"{path}:4:40: transforms.0.Spacingd.modes: unknown argument. Did you mean 'mode'?"
    )
    assert lines[1].startswith(f"{path}:6:15: model.name: unknown model 'wau_umet'")
    assert lines[1].endswith("Did you mean 'wau_unet'?")
    assert lines[2] == f"{path}:7:20: train.bach_size: unknown key. Did you mean 'batch_size'?"
    assert len(lines) == 3
    assert float(shown.stderr) < 2, "seconds of CPU: the clock of a busy machine says nothing"


@pytest.mark.parametrize("name", sorted(registry.workflows()))
def test_every_shipped_workflow_is_right(
    medplat: Callable[..., Any], project: Path, name: str
) -> None:
    shown = medplat("check", registry.workflows()[name], "--json")
    assert shown.code == 0, shown.out
    assert shown.json()["ok"] is True
    first = registry.workflows()[name].read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith(f"# medplat {name.partition('/')[0]} "), "the header is its command"


def test_check_goes_through_all_files(medplat: Callable[..., Any], project: Path) -> None:
    (project / "bad.yaml").write_text("kind: convert\nconvrt: {}\n")
    (project / "good.yaml").write_text("kind: convert\n")
    shown = medplat("check", "bad.yaml", "good.yaml", "absent.yaml", "--json")
    assert shown.code == 2
    bad, good, absent = shown.json()["files"]
    assert bad["problems"] == ["bad.yaml:2:1: convrt: unknown key. Did you mean 'convert'?"]
    assert good["problems"] == []
    assert "does not exist" in absent["problems"][0]


def test_the_doctor_names_packages_device_and_store(
    medplat: Callable[..., Any], project: Path
) -> None:
    shown = medplat("doctor", "--json").json()
    assert shown["packages"]["core"]["click"]
    assert shown["packages"]["ml"]["torch"]
    assert shown["device"]["why"]
    assert str(project) in shown["tracking"]
    assert not (project / ".medplat" / "tracking").exists()
    scan = shown["operators"]["selective_scan"]
    assert scan["why"][scan["backend"]].startswith("yes")
    told = medplat("doctor").out
    assert "unet" in told
    assert f"operator selective_scan: {scan['backend']} (" in told


def test_the_doctor_shows_no_password(
    medplat: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://someone:secret@tracking.example:5000")
    shown = medplat("doctor")
    assert "tracking.example" in shown.out
    assert "secret" not in shown.out


def test_the_page_takes_another_port_where_its_own_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        port = taken.getsockname()[1]
        assert ui.free_port(port) != port
    assert ui.free_port(port) > 0
