"""`medplat train`: the tracked run, the registered model, and a run killed and taken up again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
import training_data

from medplat.commands import train
from medplat.errors import DataError, UsageError
from medplat.workflow import read, write


@pytest.fixture
def path(project: Path) -> Path:
    return training_data.write_workflow(project, training_data.write_cases(project / "data"))


def client_of(project: Path) -> Any:
    from medplat.track import store

    return store.open_store(project).client


def test_a_run_from_workflow_to_registered_model(
    project: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = train.run(path, ("train.epochs=2",), project=project)
    said = capsys.readouterr()
    assert outcome.exit_code == 0
    assert said.out == ""
    line = f"resume with: medplat train {path} --set train.epochs=2 --resume"
    assert [text for text in said.err.splitlines() if text.startswith("resume")] == [line, line]
    assert "probe: a batch takes" in said.err
    assert "models:/balls@candidate" in said.err

    summary = outcome.summary
    assert set(summary) == {"run_id", "run_dir", "model_uri", "version", "metrics"}
    assert summary["model_uri"] == "models:/balls/1"
    json.dumps(summary, allow_nan=False)
    client = client_of(project)
    run = client.get_run(summary["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.learning_rate"] == "0.01"
    assert run.data.metrics["val_dice"] == pytest.approx(summary["metrics"]["dice"], abs=0.2)
    contexts = {entry.tags[0].value for entry in run.inputs.dataset_inputs}
    assert contexts == {"training", "validation"}
    assert client.get_model_version_by_alias("balls", "candidate").version == 1
    names = {one.path for one in client.list_artifacts(summary["run_id"])}
    assert {"cases.csv", "pictures", "validation", "workflow.yaml"} <= names

    from medplat.track import model_folder

    loaded = model_folder.read(Path(summary["run_dir"]) / "models" / "best")
    assert loaded.name == "unet"
    assert not loaded.network.training


def test_nothing_to_resume_names_what_differs(project: Path, path: Path) -> None:
    with pytest.raises(UsageError, match="no unfinished run of this workflow in the experiment"):
        train.run(path, resume=True, project=project)
    folder = project / ".medplat" / "runs" / "0123"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"")
    text = write.dump(read.read(path, kind="train"))
    (folder / "workflow.yaml").write_text(text.replace("seed: 3", "seed: 4"))
    with pytest.raises(UsageError, match=r"0123, differs in train\.seed: give the same workflow"):
        train.run(path, resume=True, project=project)
    (folder / "workflow.yaml").write_text(text)
    with pytest.raises(UsageError, match="0123, is finished"):
        train.run(path, resume=True, project=project)


def test_a_split_without_validation_is_refused(project: Path, path: Path) -> None:
    with pytest.raises(DataError, match="of 6 cases none is left for validation"):
        train.run(path, ("dataset.split={validation: 0}",), project=project)


def test_an_error_in_training_ends_the_run_as_failed(project: Path, path: Path) -> None:
    settings = ("train.learning_rate=1e30", "train.optimizer=sgd", "train.clip=null")
    with pytest.raises(DataError, match="the loss is"):
        train.run(path, settings, project=project)
    client = client_of(project)
    experiment = client.get_experiment_by_name("balls")
    runs = client.search_runs([experiment.experiment_id])
    assert [one.info.status for one in runs] == ["FAILED"]


def start(path: Path, project: Path, *more: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "medplat", "train", str(path), "--json", *more]
    return subprocess.Popen(
        program, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], words: str) -> list[str]:
    """Read stderr until these words come; what was read."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"ended without saying {words!r}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_resumed_it_is_the_same_run_with_the_same_weights(
    project: Path, path: Path
) -> None:
    settings = ("--set", "train.epochs=12", "--set", "train.patches_per_case=20")
    whole = start(path, project, *settings)
    out, err = whole.communicate(timeout=400)
    assert whole.returncode == 0, err
    undisturbed = json.loads(out)

    killed = start(path, project, *settings)
    wait_for(killed, "epoch 4/12")
    time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL

    stopped = start(path, project, *settings, "--resume")
    begun = wait_for(stopped, "epoch 8/12")
    assert not [line for line in begun if line.startswith(("epoch 1/", "epoch 2/", "epoch 3/"))]
    stopped.send_signal(signal.SIGTERM)
    halfway, err = stopped.communicate(timeout=200)
    assert stopped.returncode == 130, err
    assert err.strip().splitlines()[-1].endswith("--resume")

    resumed = start(path, project, *settings, "--resume")
    out, err = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, err
    found = json.loads(out)
    assert found["run_id"] == json.loads(halfway)["run_id"]
    assert found["run_id"] != undisturbed["run_id"]
    assert found["metrics"] == undisturbed["metrics"]
    cards = [
        json.loads((Path(one["run_dir"]) / "models" / name / "card.json").read_text())
        for one in (found, undisturbed)
        for name in ("best", "last")
    ]
    assert cards[0]["weights_sha256"] == cards[2]["weights_sha256"]
    assert cards[1]["weights_sha256"] == cards[3]["weights_sha256"]
    client = client_of(project)
    experiment = client.get_experiment_by_name("balls")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(one.info.status for one in runs) == ["FINISHED", "FINISHED"]
    history = client.get_metric_history(found["run_id"], "val_dice")
    assert {point.step for point in history} == set(range(1, 13))
