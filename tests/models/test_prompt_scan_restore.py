"""prompt_scan_restore: identities of the scan, the gains, the prompts and the residual."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from medplat.errors import WorkflowError
from medplat.models import prompt_scan_restore as plugin
from medplat.models import restormer
from medplat.models.prompt_scan_restore import Block, Config, Prompt, SpatialScan
from medplat.types import Task
from medplat_kernels import selective_scan_fn

GREY, SOLID = Task("restore", 2, 1, 1), Task("restore", 3, 1, 1)


def tiny(task: Task = GREY, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return plugin.build(Config.model_validate({**plugin.SMALL, **changes}), task).eval()


@pytest.mark.parametrize("shape", [(1, 1, 13, 21), (2, 1, 9, 8, 11)])
def test_a_silent_output_layer_gives_the_input_back(shape: tuple[int, ...]) -> None:
    network = tiny(GREY if len(shape) == 4 else SOLID)
    torch.nn.init.zeros_(network.out.weight)  # type: ignore[union-attr, arg-type]
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(network(x), x)


def turned(x: torch.Tensor, direction: int, dims: int) -> torch.Tensor:
    """(B, C, *grid) so that the direction's own order becomes raster; its own inverse on the axes.

    Directions: raster, then the first axis fastest, in 3-D the middle one; then all reversed.
    """
    axes = list(range(2, 2 + dims))
    split = [0, 1] if dims == 2 else [0, 1, 2]
    cut = split[direction % dims]
    y = x.permute(0, 1, *axes[cut:], *axes[:cut])
    return y.flatten(2).flip(-1) if direction >= dims else y.flatten(2)


def back(y: torch.Tensor, direction: int, grid: tuple[int, ...]) -> torch.Tensor:
    dims = len(grid)
    cut = direction % dims
    y = y.flip(-1) if direction >= dims else y
    y = y.unflatten(-1, (*grid[cut:], *grid[:cut]))
    order = [*range(2 + dims - cut, 2 + dims), *range(2, 2 + dims - cut)]
    return y.permute(0, 1, *order).flatten(2)


@pytest.mark.parametrize("grid", [(5, 7), (3, 4, 5)])
def test_each_direction_is_a_plain_scan_of_turned_tokens(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dims, width = len(grid), 6
    part = SpatialScan(width, dims)
    tokens = torch.randn(2, width, *grid)
    with torch.no_grad():
        got = part.scan(tokens.flatten(2).transpose(1, 2), grid).transpose(1, 2)
        wanted = torch.zeros_like(tokens.flatten(2))
        rank = part.dt_proj.shape[-1]
        for direction in range(2 * dims):
            u = turned(tokens, direction, dims)
            parts = part.x_proj[direction] @ u
            dt, b, c = parts.split([rank, plugin.STATES, plugin.STATES], dim=1)
            y = selective_scan_fn(
                u,
                part.dt_proj[direction] @ dt,
                -part.A_log[direction].exp(),
                b.contiguous(),
                c.contiguous(),
                part.D[direction],
                delta_bias=part.dt_bias[direction],
                delta_softplus=True,
                backend="torch",
            )
            assert isinstance(y, torch.Tensor)
            wanted += back(y, direction, grid)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_without_gain_the_scan_is_not_there() -> None:
    torch.manual_seed(0)
    full, bare = Block(8, 2, 2, scan=True), Block(8, 2, 2, scan=False)
    bare.load_state_dict(
        {key: value for key, value in full.state_dict().items() if "space" not in key}
    )
    torch.nn.init.zeros_(full.gain_space)  # type: ignore[arg-type]
    x = torch.randn(1, 8, 6, 10)
    with torch.no_grad():
        assert torch.equal(full(x), bare(x))


def test_prompts_are_mixed_by_weights_that_sum_to_one_at_any_size() -> None:
    prompt = Prompt(8, 3, 4)
    for size in ((3, 5, 4), (9, 4, 2)):
        x = torch.randn(2, 8, *size)
        torch.testing.assert_close(prompt.weights(x).sum(-1), torch.ones(2))
        assert prompt(x).shape == x.shape


def test_cost_grows_with_the_pixels_and_no_faster() -> None:
    counts = []
    network = tiny(prompts=False)
    for side in (32, 64):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 1, side, side))
        counts.append(counter.get_total_flops())
    assert counts[1] == 4 * counts[0]


def test_what_cannot_be_is_refused() -> None:
    for module, name in ((plugin, "prompt_scan_restore"), (restormer, "restormer")):
        for task in (Task("restore", 2, 2, 1), Task("restore", 2, 1, 1, 2)):
            with pytest.raises(WorkflowError, match=f"model: {name} gives back the channels"):
                module.build(module.TINY, task)
        assert "MTAIR" not in module.CARD.title
    with pytest.raises(ValidationError, match="3 heads do not divide 64"):
        Config(heads=(1, 3, 3, 3), width=32)
    with pytest.raises(ValidationError, match="heads needs 4 numbers"):
        restormer.Config(heads=(1,))


def test_restormer_adds_its_input() -> None:
    network = restormer.build(restormer.TINY, SOLID).eval()
    torch.nn.init.zeros_(network.network.output.conv.weight)  # type: ignore[union-attr, arg-type]
    x = torch.randn(1, 1, 5, 7, 6)
    with torch.no_grad():
        assert torch.equal(network(x), x)
