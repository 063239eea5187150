"""One image through a network: windows, padding, and a predictor that keeps its tensor."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medplat.tasks import window
from medplat.types import Task
from medplat.workflow.schema import TrainWorkflow


def workflow(kind: str = "segment", **infer: object) -> TrainWorkflow:
    label = {"labels": ({"name": "a", "value": 1},)} if kind == "segment" else {}
    return TrainWorkflow.model_validate(
        {
            "kind": "train",
            "dataset": {"name": "folder"},
            "task": {"kind": kind, "spatial_dims": 3, **label}
            | ({} if label else {"classes": ("no", "yes")}),
            "model": {"name": "unet"},
            "infer": infer,
        }
    )


TASK = Task("segment", 3, 1, 2)


class Pointwise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, -x], 1)


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 4, 6), None])
def test_windows_of_a_pointwise_network_change_nothing(size: tuple[int, ...] | None) -> None:
    image = torch.randn(1, 13, 9, 7, generator=torch.Generator().manual_seed(0))
    found = window.predict(Pointwise(), MetaTensor(image), workflow(window=size), TASK)
    assert type(found) is torch.Tensor
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.cat([image, -image]), atol=1e-6)


def test_a_network_that_returns_the_same_tensor_twice_is_safe() -> None:
    kept = torch.ones(1, 2, 8, 8, 8)

    class Cached(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return kept

    flow = workflow(window=(8, 8, 8), batch_size=1)
    found = window.predict(Cached(), torch.zeros(1, 20, 9, 8), flow, TASK)
    assert torch.allclose(found, torch.ones_like(found), atol=1e-6)
    assert bool((kept == 1).all())


def test_sizes_are_rounded_up_to_the_multiple_and_cut_back() -> None:
    class Picky(Pointwise):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert all(one % 8 == 0 for one in x.shape[2:])
            return super().forward(x)

    image = torch.randn(1, 13, 9, 7)
    found = window.predict(Picky(), image, workflow(), TASK, multiple=8)
    assert torch.allclose(found[0], image[0])
    assert window.window_size(workflow(), (13, 9, 7), 8) == (16, 16, 8)
    assert window.window_size(workflow(window=(6, 8, 9)), (13, 9, 7), 4) == (8, 8, 12)


def test_deep_supervision_gives_the_first_output() -> None:
    class Deep(Pointwise):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
            return [super().forward(x), torch.zeros(1, 2, 1, 1, 1)]

    image = torch.randn(1, 6, 5, 4)
    assert torch.allclose(window.predict(Deep(), image, workflow(), TASK)[0], image[0])


def test_half_precision_comes_back_as_float32() -> None:
    class Half(Pointwise):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).to(torch.bfloat16)

    found = window.predict(Half(), torch.ones(1, 6, 5, 4), workflow(), TASK)
    assert found.dtype == torch.float32


def test_classify_sees_the_whole_image_once() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.mean((1, 2, 3, 4)), x.amax((1, 2, 3, 4))], 1)

    image = torch.randn(1, 6, 5, 4)
    task = Task("classify", 3, 1, 2)
    found = window.predict(Mean(), image, workflow("classify"), task)
    assert torch.allclose(found, torch.stack([image.mean(), image.max()]))


def test_wrong_dimensions_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 dimensions, the task 3"):
        window.predict(Pointwise(), torch.zeros(1, 4, 4), workflow(), TASK)
