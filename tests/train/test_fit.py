"""What a training leaves behind, its precision, and its silence."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import train_once
import training_data

from medplat import registry, tasks
from medplat.errors import DataError, UsageError
from medplat.infer import restore
from medplat.loaders import batches
from medplat.train import callbacks, fit, module
from medplat.train.measure import Measure, write_cases
from medplat.workflow import read
from medplat.workflow.schema import Train


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    return training_data.write_workflow(folder, training_data.write_cases(folder / "data"))


@pytest.fixture(scope="module")
def done(
    path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[fit.Trained, Path, train_once.Notes]:
    folder, notes = tmp_path_factory.mktemp("run"), train_once.Notes()
    settings = ("train.epochs=6", "train.validate_every=2", "train.learning_rate=0.03")
    return train_once.train(path, folder, settings, sink=notes), folder, notes


def test_the_checkpoint_holds_nothing_pickled(done: Any) -> None:
    state = torch.load(done[1] / "last.ckpt", weights_only=True)
    assert {"epoch", "global_step", "state_dict", "loops", "callbacks"} <= state.keys()
    assert {"optimizer_states", "lr_schedulers", "medplat_workflow"} <= state.keys()


def test_the_best_weights_are_the_measured_ones(path: Path, done: Any) -> None:
    """With averaging the validated weights are the averaged ones; they score what was logged."""
    trained, folder, _ = done
    workflow = train_once.read_workflow(path)
    cases = registry.dataset("folder").cases(read.dataset_config(workflow))
    network = registry.model("unet").build(read.model_config(workflow), tasks.task_of(workflow))
    network.load_state_dict(fit.best_weights(folder))
    network.eval()
    measure = Measure(workflow, registry.model("unet").CARD.multiple, restore.restore)
    prepared = batches.prepare(cases[2::3], workflow, training=False)
    rows = [measure(network, case, "cpu") for case in prepared]
    again = measure.summary(rows)
    assert again["dice"] == pytest.approx(trained.best["dice"], abs=1e-6)
    with (folder / "cases.csv").open() as file:
        stored = list(csv.DictReader(file))
    assert [row["case"] for row in stored] == ["case2", "case5"]
    for row, found in zip(stored, rows, strict=True):
        assert float(row["dice_upper"]) == pytest.approx(found["dice_upper"], abs=1e-6)


def test_it_learns(done: Any) -> None:
    trained, _, notes = done
    losses = [metrics["train_loss"] for _, metrics in notes.metrics if "train_loss" in metrics]
    assert losses[-1] < 0.7 * losses[0]
    assert trained.best["dice"] > 0.4


def test_what_is_logged(done: Any) -> None:
    trained, _, notes = done
    rates = {step: one["learning_rate"] for step, one in notes.metrics if "learning_rate" in one}
    assert sorted(rates) == [1, 2, 3, 4, 5, 6]
    assert rates[6] < rates[1]
    validated = [step for step, one in notes.metrics if "val_dice" in one]
    assert validated == [2, 4, 6]
    assert notes.files == [f"validation/epoch_{step:04d}/cases.csv" for step in (2, 4, 6)]
    assert trained.last_epoch == 6
    assert trained.best_epoch in validated


def test_nothing_but_our_own_lines_is_said(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger("lightning.pytorch").level
    train_once.train(path, tmp_path, ("train.epochs=1",))
    said = capfd.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("epoch 1/1  loss ")
    assert logging.getLogger("lightning.pytorch").level == level
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_no_number_ends_the_training(path: Path, tmp_path: Path) -> None:
    settings = ("train.optimizer=sgd", "train.learning_rate=1e30", "train.clip=null")
    with pytest.raises(DataError, match=r"the loss is (nan|inf) with the cases case\d, case\d"):
        train_once.train(path, tmp_path, settings)


def test_accumulated_batches_step_together(path: Path, tmp_path: Path) -> None:
    train_once.train(path, tmp_path, ("train.epochs=2", "train.accumulate=3"))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2 * math.ceil(4 / 3)


@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_precisions(path: Path, tmp_path: Path, precision: str) -> None:
    train_once.train(path, tmp_path, ("train.epochs=1", f"train.precision='{precision}'"))
    weights = fit.last_weights(tmp_path)
    assert all(one.dtype == torch.float32 for one in weights.values() if one.is_floating_point())


def test_the_word_for_a_precision() -> None:
    cpu = torch.device("cpu")
    assert fit.precision("auto", cpu) == "32-true"
    assert fit.autocast_type("auto", cpu) is None
    assert fit.autocast_type("bf16", cpu) == torch.bfloat16
    with pytest.raises(UsageError, match="16 needs a GPU"):
        fit.precision("16", cpu)


@pytest.mark.parametrize(
    ("values", "best"),
    [([0.5, 0.4, 0.6], 3), ([math.nan, math.nan], 2), ([math.nan, 0.1, math.nan], 2)],
)
def test_without_a_number_the_latest_weights_are_the_best_known(
    path: Path, tmp_path: Path, values: list[float], best: int
) -> None:
    workflow = train_once.read_workflow(path)
    measure = Measure(workflow, 1, restore.restore)
    judge = callbacks.Validation(tmp_path, None, measure, workflow.train, None)  # type: ignore[arg-type]
    for epoch, value in enumerate(values, start=1):
        if judge._is_best({"dice": value}):
            judge.best_epoch, judge.best = epoch, {"dice": value}
    assert judge.best_epoch == best


def test_undefined_metrics_are_empty_cells(tmp_path: Path) -> None:
    write_cases([{"case": "a", "dice": math.nan}, {"case": "b", "dice": 0.25}], tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text() == "case,dice\na,\nb,0.25\n"


def test_several_processes_are_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="several processes"):
        train_once.train(path, tmp_path)


@pytest.mark.gpu
def test_on_a_gpu(path: Path, tmp_path: Path) -> None:
    done = train_once.train(path, tmp_path, ("train.epochs=2",))
    assert done.last_epoch == 2


def test_norms_and_marked_parameters_have_no_weight_decay() -> None:
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.InstanceNorm1d(4, affine=True)
    )
    network[0].bias._no_weight_decay = True
    train = Train(weight_decay=0.1)
    decayed, plain = module.optimizer(network, train).param_groups
    assert [id(one) for one in decayed["params"]] == [id(network[0].weight)]
    assert decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 5
    assert plain["weight_decay"] == 0.0
    network.requires_grad_(False)[0].weight.requires_grad = True
    assert len(module.optimizer(network, train).param_groups) == 1
