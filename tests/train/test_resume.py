"""A resumed training ends with the weights of an uninterrupted one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_once
import training_data

from medplat.errors import UsageError
from medplat.train import fit

STEPS_AN_EPOCH = 4  # 4 cases x 2 patches in batches of 2


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    return training_data.write_workflow(folder, training_data.write_cases(folder / "data"))


@pytest.fixture(scope="module")
def undisturbed(workflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = train_once.train(workflow, folder)
    assert done.interrupted is None
    assert done.last_epoch == 4
    return folder


def assert_equal_weights(one: Path, other: Path) -> None:
    for read in (fit.last_weights, fit.best_weights):
        ours, theirs = read(one), read(other)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=0, atol=0)
    assert (one / "cases.csv").read_text() == (other / "cases.csv").read_text()


def test_the_same_seed_gives_the_same_weights(
    workflow: Path, undisturbed: Path, tmp_path: Path
) -> None:
    train_once.train(workflow, tmp_path)
    assert_equal_weights(tmp_path, undisturbed)


def test_another_seed_gives_others(workflow: Path, undisturbed: Path, tmp_path: Path) -> None:
    train_once.train(workflow, tmp_path, ("train.seed=4", "train.epochs=1"))
    ours, theirs = fit.last_weights(tmp_path), fit.last_weights(undisturbed)
    assert any(not torch.equal(value, theirs[key]) for key, value in ours.items())


def test_killed_in_mid_epoch_and_resumed(workflow: Path, undisturbed: Path, tmp_path: Path) -> None:
    step = 2 * STEPS_AN_EPOCH + 1
    program = [sys.executable, train_once.__file__, str(workflow), str(tmp_path), str(step)]
    killed = subprocess.run(program, capture_output=True, timeout=200, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    notes = train_once.Notes()
    train_once.train(workflow, tmp_path, resume=True, sink=notes)
    assert_equal_weights(tmp_path, undisturbed)
    assert sorted({step for step, _ in notes.metrics}) == [3, 4], "only epoch 3 is done again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_batches_and_resumes(
    workflow: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    def send(step: int) -> None:
        if step == STEPS_AN_EPOCH + 2:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    stopped = train_once.train(workflow, tmp_path, at_step=send)
    assert stopped.interrupted == number.name
    assert signal.getsignal(number) is before
    assert train_once.train(workflow, tmp_path, resume=True).interrupted is None
    assert_equal_weights(tmp_path, undisturbed)


def test_stopped_twice_with_validation_every_third_epoch(workflow: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=7", "train.validate_every=3", "train.ema=null")
    whole = tmp_path / "whole"
    done = train_once.train(workflow, whole, settings)
    assert done.last_epoch == 7
    assert [path.name for path in sorted((whole / "validation").iterdir())] == [
        "epoch_0003",
        "epoch_0006",
        "epoch_0007",
    ]
    parts = tmp_path / "parts"
    for round_, step in enumerate((STEPS_AN_EPOCH * 3 + 1, STEPS_AN_EPOCH * 2 + 3)):

        def send(now: int, step: int = step) -> None:
            if now == step:
                signal.raise_signal(signal.SIGTERM)

        train_once.train(workflow, parts, settings, resume=round_ > 0, at_step=send)
    again = train_once.train(workflow, parts, settings, resume=True)
    assert again == done
    assert_equal_weights(parts, whole)


def test_the_time_limit_stops_and_the_rest_follows(
    workflow: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medplat.train import stop

    clock = iter(range(0, 10**6, 30))
    settings = ("train.max_minutes=5",)
    with monkeypatch.context() as patch:
        patch.setattr(stop.time, "monotonic", lambda: float(next(clock)))
        stopped = train_once.train(workflow, tmp_path, settings)
    assert stopped.interrupted == "the limit of 5 minutes"
    assert train_once.train(workflow, tmp_path, settings, resume=True).interrupted is None
    assert_equal_weights(tmp_path, undisturbed)


def test_a_finished_training_resumed_changes_nothing(
    workflow: Path, undisturbed: Path, tmp_path: Path
) -> None:
    first = train_once.train(workflow, tmp_path)
    again = train_once.train(workflow, tmp_path, resume=True)
    assert again == first
    assert_equal_weights(tmp_path, undisturbed)


def test_the_checkpoint_of_another_workflow_is_refused(workflow: Path, tmp_path: Path) -> None:
    train_once.train(workflow, tmp_path, ("train.epochs=1",))
    with pytest.raises(UsageError, match="another workflow"):
        train_once.train(workflow, tmp_path, ("train.epochs=2",), resume=True)


def test_early_stop_also_after_a_resume(workflow: Path, tmp_path: Path) -> None:
    settings = ("train.learning_rate=1e-9", "train.early_stop=2", "train.ema=null")
    done = train_once.train(workflow, tmp_path, settings)
    assert done.best_epoch == 1
    assert done.last_epoch == 3
    again = train_once.train(workflow, tmp_path, settings, resume=True)
    assert again == done
