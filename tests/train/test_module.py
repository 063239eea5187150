"""The learning rate over the steps, and the optimizers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from medplat.train.module import optimizer, rate, steps_per_epoch
from medplat.workflow.schema import Train


def test_warm_up_then_half_a_cosine() -> None:
    train = Train(warmup=0.1)
    rates = [rate(step, 100, train) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_constant_after_the_warm_up() -> None:
    train = Train(warmup=0.02, schedule="constant")
    assert [rate(step, 100, train) for step in (0, 1, 2, 99)] == [0.5, 1.0, 1.0, 1.0]


def test_no_warm_up_and_a_single_step() -> None:
    assert rate(0, 1, Train(warmup=0)) == 1.0
    assert rate(0, 1, Train(warmup=1)) == 1.0
    assert rate(5, 1, Train(warmup=0)) == pytest.approx(0.0)


@pytest.mark.parametrize(("batches", "accumulate", "steps"), [(8, 1, 8), (8, 3, 3), (1, 4, 1)])
def test_steps_per_epoch(batches: int, accumulate: int, steps: int) -> None:
    assert steps_per_epoch(batches, Train(accumulate=accumulate)) == steps


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
def test_optimizers(name: str, kind: type) -> None:
    network = torch.nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    found = optimizer(network, Train(optimizer=name, learning_rate=0.5, weight_decay=0.25))
    assert type(found) is kind
    assert found.defaults["lr"] == 0.5
    assert found.defaults["weight_decay"] == 0.25
    assert found.param_groups[0]["params"] == [network.weight]
