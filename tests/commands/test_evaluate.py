"""`medplat evaluate` on a model folder and small volumes, against numbers made another way."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medplat import registry
from medplat.commands import evaluate, evaluate_numbers
from medplat.errors import DataError
from medplat.track import model_folder
from medplat.workflow import read as workflow_read

TRAIN = """
kind: train
dataset: {name: folder, root: .}
transforms:
- NormalizeIntensityd: {keys: [image]}
task:
  kind: segment
  spatial_dims: 3
  labels: [{name: a, value: 1}, {name: b, value: 5}]
model: {name: unet, channels: [4, 8], residual_units: 0}
"""
EVALUATE = """
kind: evaluate
dataset: {name: table, file: FOLDER/cases.csv}
evaluate: {model: FOLDER/model, split: all, replicates: 200}
track: {experiment: test}
"""
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five cases of four patients and a model of random weights, in one project folder."""
    project = tmp_path_factory.mktemp("project")
    generator = np.random.default_rng(0)
    lines = ["case,patient,image,label,split"]
    for number in range(5):
        shape = (9, 12 + number, 7)
        image = generator.normal(size=shape).astype(np.float32)
        label = generator.integers(0, 2, size=shape).astype(np.uint8)
        if number > 0:
            label[label == 1] = generator.choice([1, 5], size=int((label == 1).sum()))
        for name, array in (("image", image), ("label", label)):
            nib.save(nib.Nifti1Image(array, AFFINE), project / f"{name}{number}.nii.gz")
        patient = f"p{max(number, 1)}"
        side = "test" if number < 2 else "train"
        lines.append(f"c{number},{patient},image{number}.nii.gz,label{number}.nii.gz,{side}")
    text = "\n".join(lines) + "\n"
    (project / "cases.csv").write_text(text, encoding="utf-8")
    (project / "broken.csv").write_text(text.replace("image3", "bad"), encoding="utf-8")
    (project / "bad.nii.gz").write_bytes(b"not a volume")
    workflow = workflow_read.read_text(TRAIN, "train.yaml", kind="train")
    plugin = registry.model("unet")
    torch.manual_seed(0)
    from medplat.tasks import task_of

    network = plugin.build(workflow_read.model_config(workflow), task_of(workflow))
    model_folder.write(project / "model", network, workflow, plugin.CARD)
    text = EVALUATE.replace("FOLDER", project.as_posix())
    (project / "evaluate.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield project


def expected_dice(project: Path, number: int, index: int, value: int) -> float:
    image = np.asarray(nib.load(project / f"image{number}.nii.gz").dataobj)
    truth = np.asarray(nib.load(project / f"label{number}.nii.gz").dataobj) == value
    network = model_folder.read(project / "model").network
    scaled = torch.from_numpy((image - image.mean()) / image.std())
    with torch.no_grad():
        ours = network(scaled[None, None].float())[0].argmax(0).numpy() == index
    return 2 * (ours & truth).sum() / (ours.sum() + truth.sum())


def test_numbers_files_and_run(data):
    outcome = evaluate.run(data / "evaluate.yaml", project=data)
    assert outcome.exit_code == 0
    metrics = outcome.summary["metrics"]
    wanted = [expected_dice(data, number, 1, 1) for number in range(5)]
    assert metrics["dice_a"]["value"] == pytest.approx(np.mean(wanted), abs=1e-6)
    assert metrics["dice_a"]["low"] < metrics["dice_a"]["value"] < metrics["dice_a"]["high"]
    assert (metrics["dice_a"]["n"], metrics["dice_a"]["patients"]) == (5, 4)
    assert metrics["dice_b"]["n"] == 4
    assert outcome.summary["counts"]["empty_b"] == 1
    assert "dice_b: 4 cases: too few to rely on" in outcome.summary["notes"]
    mean = (metrics["dice_a"]["value"] + metrics["dice_b"]["value"]) / 2
    assert metrics["dice"]["value"] == pytest.approx(mean)
    with (Path(outcome.summary["run_dir"]) / "cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [f"c{number}" for number in range(5)]
    assert float(rows[2]["dice_a"]) == pytest.approx(wanted[2], abs=1e-6)
    assert rows[0]["dice_b"] == ""
    # Voxels are 1 x 2 x 3 mm.
    assert float(rows[0]["truth_ml_a"]) * 1000 / 6 == pytest.approx(
        np.asarray(nib.load(data / "label0.nii.gz").dataobj).sum()
    )
    check_store(data, outcome.summary)


def check_store(project: Path, summary: dict) -> None:
    from medplat.track.store import open_store

    client = open_store(project).client
    run = client.get_run(summary["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["dice_a_low"] == pytest.approx(summary["metrics"]["dice_a"]["low"])
    assert run.data.metrics["dice_b_n"] == 4
    assert run.inputs.dataset_inputs[0].dataset.name == "table"
    artifacts = {one.path for one in client.list_artifacts(summary["run_id"])}
    assert {"cases.csv", "metrics.json", "workflow.yaml"} <= artifacts
    stored = json.loads((Path(summary["run_dir"]) / "metrics.json").read_text(encoding="utf-8"))
    assert stored["metrics"] == summary["metrics"]
    assert str(project) not in json.dumps(stored)


def test_the_split_column_is_followed(data):
    cases = registry.dataset("table").cases(
        registry.dataset("table").Config(file=data / "cases.csv")
    )
    model = workflow_read.read_text(TRAIN, "train.yaml", kind="train", plugins=False)

    def side(name: str) -> list[str]:
        settings = [f"evaluate.split={name}"]
        workflow = workflow_read.read(data / "evaluate.yaml", settings, kind="evaluate")
        return [case.case for case in evaluate.choose(cases, model, workflow)[0]]

    assert side("test") == ["c0", "c1"]
    with pytest.raises(DataError, match="none of the 5 cases is on the side 'validation'"):
        side("validation")


def test_a_case_that_fails(data):
    broken = [f"dataset.file={data.as_posix()}/broken.csv"]
    with pytest.raises(DataError, match=r"case c3.*evaluate\.missing"):
        evaluate.run(data / "evaluate.yaml", broken, project=data)
    settings = [*broken, "evaluate.missing=exclude"]
    outcome = evaluate.run(data / "evaluate.yaml", settings, project=data)
    assert outcome.exit_code == 3
    assert (outcome.summary["cases"], outcome.summary["failed"]) == (4, 1)
    assert "4 cases (1 excluded)" in outcome.text
    excluded = outcome.summary["metrics"]["dice_a"]["value"]
    settings = [*broken, "evaluate.missing=worst"]
    outcome = evaluate.run(data / "evaluate.yaml", settings, project=data)
    assert outcome.exit_code == 3
    assert outcome.summary["metrics"]["dice_a"]["value"] == pytest.approx(excluded * 4 / 5)
    assert outcome.summary["metrics"]["dice_a"]["n"] == 5


CLASSIFY = TRAIN[: TRAIN.index("task:")] + (
    "task: {kind: classify, spatial_dims: 2, classes: [well, ill]}\nmodel: {name: unet}\n"
)


def classified(count: int) -> list[dict]:
    """Cases of which every third is ill; the model ranks all but one of them right."""
    rows = []
    for number in range(count):
        ill = number % 3 == 0
        probability = 0.9 - number / 1000 if ill and number else 0.2 + number / 1000
        rows.append(
            {
                "case": f"c{number}",
                "patient": f"p{number}",
                "probability_well": 1 - probability,
                "probability_ill": probability,
                "target": float(ill),
                "correct": float((probability > 0.5) == ill),
                "log_loss": -math.log(probability if ill else 1 - probability),
            }
        )
    return rows


def test_classify_has_its_baseline_and_says_what_is_too_few():
    workflow = workflow_read.read_text(CLASSIFY, "train.yaml", kind="train", plugins=False)
    numbers = evaluate_numbers.measure(workflow, classified(60), replicates=100, seed=0)
    assert numbers.counts["n_ill"] == 20
    assert numbers.counts["accuracy_majority"] == pytest.approx(40 / 60)
    assert numbers.metrics["auc"].value == pytest.approx(19 / 20)  # case 0 ranks below all others
    assert numbers.metrics["auc"].redrawn == 0
    assert numbers.metrics["accuracy"].value == pytest.approx(59 / 60)
    assert numbers.notes == []
    assert numbers.worst["log_loss"][0][0] == "c0"
    few = evaluate_numbers.measure(workflow, classified(12), replicates=50, seed=0)
    assert few.notes == [
        "well: 8 cases of 12: too few to rely on",
        "ill: 4 cases of 12: too few to rely on",
    ]


def test_the_worst_row_of_a_classification():
    workflow = workflow_read.read_text(CLASSIFY, "train.yaml", kind="train", plugins=False)
    from medplat.types import Case

    rows = classified(6)
    row = evaluate.worst_row(workflow, Case("x", "px", target="ill"), rows)
    assert (row["correct"], row["probability_ill"], row["target"]) == (0.0, 0.0, 1.0)
    assert row["log_loss"] == max(one["log_loss"] for one in rows)


def test_a_case_without_truth_cannot_score_the_worst():
    workflow = workflow_read.read_text(CLASSIFY, "train.yaml", kind="train", plugins=False)
    from medplat.types import Case

    assert evaluate.has_truth(workflow, Case("x", "px", target="ill"))
    assert not evaluate.has_truth(workflow, Case("x", "px"))
    assert not evaluate.has_truth(workflow, Case("x", "px", target="unknown"))


RESTORE = TRAIN[: TRAIN.index("transforms:")] + (
    "task: {kind: restore, degrade: [{kind: rician, noise_percent: 5}]}\nmodel: {name: unet}\n"
)


def test_restore_has_the_input_beside_it_and_the_gain():
    workflow = workflow_read.read_text(RESTORE, "train.yaml", kind="train", plugins=False)
    rng = np.random.default_rng(0)
    rows = [
        {
            "case": f"c{n}",
            "patient": f"p{n}",
            "psnr": 30 + rng.normal(),
            "psnr_input": 25.0,
            "mae": 2.0,
        }
        for n in range(12)
    ]
    numbers = evaluate_numbers.measure(workflow, rows, replicates=100, seed=0)
    gain = numbers.metrics["psnr_gain"]
    assert gain.value == pytest.approx(np.mean([row["psnr"] for row in rows]) - 25)
    assert gain.low < gain.value < gain.high
    assert numbers.metrics["psnr_input"].value == 25.0
    assert numbers.worst["psnr"][0][1] == min(row["psnr"] for row in rows)
    assert numbers.notes == []
    few = evaluate_numbers.measure(workflow, rows[:4], replicates=50, seed=0)
    assert few.notes == ["4 cases: too few to rely on"]


def test_the_worst_row_of_a_restoration_is_that_of_the_others():
    workflow = workflow_read.read_text(RESTORE, "train.yaml", kind="train", plugins=False)
    from medplat.types import Case

    rows = [{"case": "a", "patient": "p", "psnr": 30.0, "ssim": 0.9, "mae": 2.0}]
    rows.append({"case": "b", "patient": "q", "psnr": 20.0, "ssim": math.nan, "mae": 5.0})
    row = evaluate.worst_row(workflow, Case("x", "px"), rows)
    assert (row["psnr"], row["ssim"], row["mae"]) == (20.0, 0.9, 5.0)
    assert evaluate.has_truth(workflow, Case("x", "px"))
