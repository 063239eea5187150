"""lesion_net_broken: a dead parameter, a batch leak, a wrong size, a pickled state."""

from __future__ import annotations

from typing import Any

import torch
from lesion_net import CARD, TINY, TWIN, Config, LesionNet
from torch import Tensor, nn

from medplat.types import Task

__all__ = ["CARD", "TINY", "TWIN", "Config", "build"]


class Broken(LesionNet):
    """Four faults at once; the suite must name each."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        self.never_moved = nn.Parameter(torch.ones(config.width))

    def forward(self, x: Tensor) -> Tensor:
        """One voxel short, each case less the mean of its batch, a parameter times zero."""
        logits = super().forward(x - x.mean(0, keepdim=True) / 2)
        return (logits + 0 * self.never_moved.sum())[..., :-1]

    def get_extra_state(self) -> Any:
        """What torch would pickle."""
        return {"seen": {1, 2, 3}}

    def set_extra_state(self, state: Any) -> None:
        """Ignored."""


def build(config: Config, task: Task) -> nn.Module:
    """The network with its faults."""
    return Broken(config, task)
