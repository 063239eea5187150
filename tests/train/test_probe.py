"""The probe: what it says, and what it refuses with which proposal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_once
import training_data

from medplat import registry, tasks
from medplat.errors import UsageError
from medplat.infer import restore
from medplat.loaders import batches
from medplat.train import memory, probe
from medplat.train.measure import Measure
from medplat.workflow import read
from medplat.workflow.schema import TrainWorkflow

CPU = torch.device("cpu")


class Hungry(torch.nn.Module):
    """A network that takes `per_voxel` bytes for each voxel of its input.

    The tests make it take more than 32 MiB at once: smaller blocks may come out of memory that the
    process already holds, and then nothing grows.
    """

    def __init__(self, per_voxel: int) -> None:
        super().__init__()
        self.per_voxel = per_voxel
        self.head = torch.nn.Conv3d(1, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            held = np.ones(x.numel() * self.per_voxel // 8)
            assert held[-1] == 1
            let_the_sampler_see()
        return self.head(x)


def let_the_sampler_see() -> None:
    """Wait until the sampling thread has seen the peak."""
    import time

    time.sleep(0.05)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    root = training_data.write_cases(folder / "data", 3, shape=(32, 24, 16))
    return training_data.write_workflow(folder, root)


def run_probe(
    path: Path, network: torch.nn.Module, settings: tuple[str, ...], free: int | None = None
) -> probe.Estimate:
    workflow = train_once.read_workflow(path, ("train.patch_size=[32,24,16]", *settings))
    cases = registry.dataset("folder").cases(read.dataset_config(workflow))
    training, validation = (
        batches.prepare(cases, workflow, training=side, cache=False) for side in (True, False)
    )
    return probe.probe(
        network,
        tasks.get("segment").loss(workflow),
        Measure(workflow, 4, restore.restore),
        workflow,
        training,
        validation,
        device=CPU,
        autocast=None,
        cache=5,
        free=free,
    )


def test_it_estimates_and_leaves_everything_as_it_was(path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(1), torch.nn.Conv3d(1, 3, 3, padding=1))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    found = run_probe(path, network, ("train.epochs=10",))
    assert torch.equal(torch.rand(3), expected), "no random number was used up"
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(one.grad is None for one in network.parameters())
    steps = 10 * 3  # 3 cases x 2 patches in batches of 2
    wanted = steps * found.step_seconds + 10 * 3 * found.case_seconds
    assert found.total_seconds == pytest.approx(wanted)
    assert "peak memory" in found.sentence()


def test_a_batch_that_does_not_fit_is_refused_before_it_is_tried(path: Path) -> None:
    network = Hungry(per_voxel=40_000)
    voxels = 32 * 24 * 16
    free = int(3.4 * voxels * 40_000)  # three examples fit
    tried: list[int] = []
    network.register_forward_pre_hook(lambda module, x: tried.append(x[0].numel()))
    with pytest.raises(UsageError) as error:
        run_probe(path, network, ("train.batch_size=6",), free)
    assert tried == [voxels // 8], "half a patch only"
    text = str(error.value)
    assert "a batch of 6 x 32x24x16 needs about" in text
    found = re.search(r"set train\.batch_size to (\d) and train\.accumulate to (\d)", text)
    assert found, text
    assert int(found[1]) in (2, 3)
    assert int(found[1]) * int(found[2]) >= 6


def test_a_patch_that_does_not_fit_is_refused_with_a_smaller_one(path: Path) -> None:
    voxels = 32 * 24 * 16
    free = int(0.4 * voxels * 40_000)
    with pytest.raises(UsageError, match=r"set train\.batch_size to 1 and train\.patch_size to \["):
        run_probe(path, Hungry(per_voxel=40_000), ("train.batch_size=1",), free)


def test_running_out_of_memory_is_said_plainly(path: Path) -> None:
    class Greedy(Hungry):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.head(x)

    with pytest.raises(UsageError, match=r"ran out of memory.*set train\.batch_size to 2"):
        run_probe(path, Greedy(1), ("train.batch_size=4",))


def test_a_cache_that_does_not_fit(path: Path) -> None:
    probe.check_cache(80, 100)
    with pytest.raises(UsageError, match=r"set train\.cache to false"):
        probe.check_cache(95, 100)


def test_the_cache_is_judged_by_the_first_case() -> None:
    workflow: Any = TrainWorkflow.model_construct(train=training_section(True))
    side = [{"image": torch.zeros(10)}] * 3
    assert probe.cache_bytes(side, side[:1], workflow) == 4 * 40
    off: Any = TrainWorkflow.model_construct(train=training_section(False))
    assert probe.cache_bytes(side, side, off) == 0


def training_section(cache: bool) -> Any:
    from medplat.workflow.schema import Train

    return Train(cache=cache)


def test_proposals_stay_multiples() -> None:
    text = probe._proposal(1e12, 10**9, 0, 1000.0, 4, (128, 128, 100), 4)
    size = re.search(r"patch_size to \[(.*)\]", text)
    assert size, text
    sides = [int(side) for side in size[1].split(",")]
    assert all(side % 4 == 0 for side in sides)
    assert np.prod(sides) * 1000 <= 0.9e9
    assert "no patch fits" in probe._proposal(1e12, 10**3, 0, 1e6, 4, (8, 8, 8), 8)


def test_peak_sees_memory_that_is_gone_again() -> None:
    with memory.Peak(CPU) as peak:
        held = np.ones(10_000_000)
        let_the_sampler_see()
        del held
    assert 60e6 < peak.bytes < 120e6


def test_a_container_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("2000\n")
    (tmp_path / "memory.current").write_text("500\n")
    assert memory.free_bytes(CPU, tmp_path) == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU, tmp_path) > 10**6
    assert memory.free_bytes(CPU, tmp_path / "none") > 10**6


def test_words_for_bytes_and_seconds() -> None:
    assert [memory.shown(count) for count in (3e6, 2.54e9)] == ["3 MB", "2.5 GB"]
    assert [probe.duration(seconds) for seconds in (3.2, 200, 7500)] == [
        "3 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
