"""restormer: attention over channels at every scale, the baseline of restoration."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medplat.blocks.padding import crop_to, pad_for_levels
from medplat.tasks.restore import require_same_grid
from medplat.types import Card, Count, Task

SMALL = {"width": 8, "blocks": (1, 1), "heads": (1, 2), "refinement": 1}
COLOUR = Task("restore", 2, 3, 3)

CARD = Card(
    title="Restormer, as MONAI builds it",
    paper=(
        "Zamir, Arora, Khan, Hayat, Khan, Yang: Restormer: Efficient Transformer for "
        "High-Resolution Image Restoration, CVPR 2022; arXiv 2111.09881"
    ),
    fidelity="verified",
    why=(
        "The network is monai.networks.nets.restormer.Restormer itself, with the paper's blocks "
        "and heads as defaults; MONAI normalises each channel over space where the paper "
        "normalises each voxel over channels."
    ),
    upstream_licence="Apache-2.0 (MONAI); no weights are used",
    counts=(
        Count("2-D, colour", COLOUR, {}, 26_126_644),
        Count("2-D tiny", Task("restore", 2, 1, 1), SMALL, 19_379),
        Count("3-D tiny", Task("restore", 3, 1, 1), SMALL, 51_311),
    ),
    deviations=(
        "the input is padded at the far end to the network's multiple and the output cut back",
        "the input is added to the output, as in the paper; MONAI's class leaves it out",
    ),
    kinds=("restore",),
)


class Config(BaseModel):
    """Keys of `model` in a workflow; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(48, ge=1, description="Channels of the finest level; doubled at each next.")
    blocks: tuple[int, ...] = Field(
        (4, 6, 6, 8), min_length=2, description="Blocks of each level, finest first."
    )
    heads: tuple[int, ...] = Field((1, 2, 4, 8), description="Attention heads of each level.")
    refinement: int = Field(4, ge=0, description="Blocks at full size after the decoder.")

    @model_validator(mode="after")
    def _heads_fit(self) -> Config:
        if len(self.heads) != len(self.blocks):
            raise ValueError(f"heads needs {len(self.blocks)} numbers, as many as blocks")
        for level, heads in enumerate(self.heads):
            if (self.width << level) % heads:
                raise ValueError(f"{heads} heads do not divide {self.width << level} channels")
        return self


TINY = Config.model_validate(SMALL)
TWIN: Config | None = None


class Restorer(nn.Module):
    """The network for any size, its output added to the input."""

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same, restored."""
        padded = pad_for_levels(x, self.multiple)
        return x + crop_to(self.network(padded), x.shape[2:])


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "restore".

    Raises:
        WorkflowError: Other channels or another size are asked for than what comes in.
    """
    from monai.networks.nets.restormer import Restormer  # seconds that `check` does not need

    require_same_grid(task, "restormer")
    network: Any = Restormer(
        spatial_dims=task.spatial_dims,
        in_channels=task.in_channels,
        out_channels=task.out_channels,
        dim=config.width,
        num_blocks=config.blocks,
        heads=config.heads,
        num_refinement_blocks=config.refinement,
    )
    return Restorer(network, 2 ** (len(config.blocks) - 1))
