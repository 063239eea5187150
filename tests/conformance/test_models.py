"""Every registered model plugin through the conformance suite, and the suite on broken plugins."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from medplat import registry, testing
from medplat.errors import PluginError
from medplat.types import Card, Count, Task


@pytest.mark.parametrize("name", registry.model_names())
def test_plugin(name):
    results = testing.check_model(name)
    assert len(results) > 10


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(4, description="Channels.")
    operator: bool = Field(True, description="The key operator.")


class Sound(nn.Module):
    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        conv = nn.Conv2d if task.spatial_dims == 2 else nn.Conv3d
        self.body = conv(task.in_channels, config.width, 3, padding=1)
        self.head = conv(config.width, task.out_channels, 1)

    def forward(self, x):
        return self.head(self.body(x).relu())


class Inplace(Sound):
    def forward(self, x):
        return super().forward(x.mul_(1.5))


class Leaking(Sound):
    def forward(self, x):
        return super().forward(x - x.mean())


class Random(Sound):
    def forward(self, x):
        return super().forward(x) + torch.rand(())


class Shrinking(Sound):
    def forward(self, x):
        return super().forward(x)[..., 1:]


class EvenOnly(Sound):
    def forward(self, x):
        return nn.functional.interpolate(super().forward(x)[..., ::2], scale_factor=(1, 2))


class Unused(Sound):
    def __init__(self, config, task):
        super().__init__(config, task)
        self.left_over = nn.Linear(2, 2)


class Infinite(Sound):
    def forward(self, x):
        y = super().forward(x)
        return y + (y * 0).abs().sqrt()


class Forgetful(Sound):
    """Holds numbers outside its state dict."""

    def __init__(self, config, task):
        super().__init__(config, task)
        self.shift = torch.randn(1)

    def forward(self, x):
        return super().forward(x) + self.shift


class Frozen(Sound):
    def forward(self, x):
        return super().forward(x).detach() + 0 * super().forward(x)


COUNT = Count("2-D", Task("segment", 2, 1, 2), {}, 4 * 9 + 4 + 4 * 2 + 2)
CARD = Card(
    title="A small network",
    paper="none",
    fidelity="inspired",
    why="made for this test",
    upstream_licence="none",
    counts=(COUNT,),
    spatial_dims=(2,),
)


def plugin(network: type[nn.Module] = Sound, **parts: Any) -> Any:
    usual = {"CARD": CARD, "Config": Config, "build": network}
    usual |= {"TINY": Config(), "TWIN": Config(operator=False)}
    return SimpleNamespace(**usual | parts)


def test_a_sound_plugin_passes():
    before = torch.random.get_rng_state()
    results = testing.check_module(plugin(), "sound")
    assert torch.equal(before, torch.random.get_rng_state())
    assert str(results[3]) == "ok   parameters of 2-D: 50"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Inplace, "changed its input in place"),
        (Leaking, "depend on its batch"),
        (Random, "the same input in eval mode gave other logits"),
        (Shrinking, "logits are"),
        (EvenOnly, "odd sizes"),
        (Unused, r"no gradient reaches left_over"),
        (Infinite, "gradients are not finite"),
        (Forgetful, "not in the state dict"),
        (Frozen, "gradients are zero"),
    ],
)
def test_a_broken_network_is_found(network, message):
    with pytest.raises(PluginError, match=message):
        testing.check_module(plugin(network), "broken")


class Silent(Config):
    more: int = 1


class Open(BaseModel):
    width: int = Field(4, description="Channels.")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"CARD": replace(CARD, why=" ")}, "CARD.why is empty"),
        ({"CARD": replace(CARD, counts=())}, "no parameter integer"),
        ({"CARD": replace(CARD, fidelity="exact")}, "fidelity"),
        ({"CARD": replace(CARD, kinds=("segment", "dream"))}, "kinds"),
        ({"CARD": replace(CARD, counts=(replace(COUNT, parameters=51),))}, "50 parameters"),
        ({"TWIN": Config()}, "one key, not in none"),
        ({"TWIN": Config(operator=False, width=5)}, "one key"),
        ({"Config": Silent}, "without a description: more"),
        ({"Config": Open}, "forbid unknown keys"),
    ],
)
def test_a_broken_contract_is_found(parts, message):
    with pytest.raises(PluginError, match=message):
        testing.check_module(plugin(**parts), "broken")


def test_all_failures_come_at_once():
    with pytest.raises(PluginError) as caught:
        testing.check_module(plugin(Unused, CARD=replace(CARD, title="")), "broken")
    lines = str(caught.value).splitlines()
    assert any("CARD.title" in line for line in lines)
    assert any("left_over" in line for line in lines)
    assert all(line.startswith("model plugin 'broken': ") for line in lines)
