"""SS2D against a loop over voxels and states in float64, its start values, and its twin."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from medplat.blocks.ss2d import SS2D, VSSBlock


def drawn(channels: int = 6, **options) -> SS2D:
    """A block whose four directions differ in every parameter."""
    torch.manual_seed(5)
    block = SS2D(channels, **{"state": 3, **options})
    if block.ssm == "on":
        for parameter in (block.x_proj_weight, block.A_logs, block.Ds):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return block


def walks(height: int, width: int) -> list[list[tuple[int, int]]]:
    """The four directions, written out: rows, columns, and both from the end."""
    rows = list(itertools.product(range(height), range(width)))
    columns = [(row, column) for column in range(width) for row in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]]


def scanned(block: SS2D, u: torch.Tensor) -> torch.Tensor:
    """Sum of the four scans of u (H, W, d), one voxel after the other."""
    height, width, inner = u.shape
    rank, states = block.dt_projs_weight.shape[2], block.A_logs.shape[1]
    total = torch.zeros_like(u)
    for k, walk in enumerate(walks(height, width)):
        own = slice(k * inner, (k + 1) * inner)
        a, skip = -block.A_logs.double()[own].exp(), block.Ds.double()[own]
        state = u.new_zeros(inner, states)
        for row, column in walk:
            here = u[row, column]
            row_of = block.x_proj_weight.double()[k] @ here
            step = block.dt_projs_weight.double()[k] @ row_of[:rank]
            step = F.softplus(step + block.dt_projs_bias.double()[k])[:, None]
            b, c = row_of[rank : rank + states], row_of[rank + states :]
            state = (step * a).exp() * state + step * b * here[:, None]
            at = torch.zeros_like(u)
            at[row, column] = state @ c + skip * here
            total = total + at
    return total


def by_loops(block: SS2D, x: torch.Tensor) -> torch.Tensor:
    """The whole block in float64, x (B, H, W, C)."""
    weight = {name: one.double() for name, one in block.named_parameters()}
    inner = weight["out_norm.weight"].shape[0]
    xz = x.double() @ weight["in_proj.weight"].T
    mapped = F.conv2d(
        xz[..., :inner].permute(0, 3, 1, 2),
        weight["conv2d.weight"],
        weight.get("conv2d.bias"),
        padding=1,
        groups=inner,
    )
    u = F.silu(mapped).permute(0, 2, 3, 1)
    y = torch.stack([scanned(block, one) for one in u]) if block.ssm == "on" else u
    y = F.layer_norm(y, (inner,), weight["out_norm.weight"], weight["out_norm.bias"])
    if block.gate:
        y = y * F.silu(xz[..., inner:])
    return y @ weight["out_proj.weight"].T


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("size", [(5, 7), (1, 9), (6, 1), (2, 3)])
@pytest.mark.parametrize(
    "options", [{}, {"gate": False, "conv_bias": False, "state": 1}, {"expand": 1.2}]
)
def test_equals_a_loop_in_float64(size, options):
    block = drawn(**options)
    x = torch.randn(2, *size, 6)
    assert relative(block(x), by_loops(block, x)) < 2e-6


def test_gradients_equal_those_of_the_loop():
    block = drawn()
    x = torch.randn(1, 4, 5, 6)
    pull = torch.randn(1, 4, 5, 6)
    (block(x) * pull).sum().backward()
    found = {name: one.grad.clone() for name, one in block.named_parameters()}
    block.zero_grad()
    (by_loops(block, x) * pull).sum().backward()
    for name, parameter in block.named_parameters():
        assert relative(found[name], parameter.grad.double()) < 2e-5, name


def test_a_transposed_image_swaps_the_rows_and_the_columns():
    """Directions 0 and 1, 2 and 3 trade places; a block that mixes them up is found."""
    block = drawn()
    x = torch.randn(1, 5, 7, 12)
    wanted = block.scan(x)
    for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"):
        parameter = getattr(block, name)
        four = parameter.data.unflatten(0, (4, -1))
        parameter.data = four[[1, 0, 3, 2]].flatten(0, 1)
    found = block.scan(x.transpose(1, 2)).transpose(1, 2)
    assert relative(found, wanted.double()) < 2e-6


@pytest.mark.parametrize(
    ("channels", "wanted"),
    [(48, 36_480), (96, 105_216), (192, 339_456), (384, 1_195_008), (768, 4_454_400)],
)
def test_parameters(channels, wanted):
    with torch.device("meta"):
        block = SS2D(channels)
    assert sum(one.numel() for one in block.parameters()) == wanted


def test_start_values():
    block = SS2D(96)
    step = F.softplus(block.dt_projs_bias)
    assert step.min() >= 1e-4
    assert step.max() <= 0.1 + 1e-6
    assert step.std() > 0.01
    assert torch.equal(block.A_logs, torch.arange(1.0, 17).log().expand(4 * 192, 16))
    assert torch.equal(block.Ds, torch.ones(4 * 192))
    assert block.dt_projs_weight.abs().max() <= 6**-0.5
    assert block.x_proj_weight.abs().max() <= 192**-0.5
    undecayed = {
        name for name, one in block.named_parameters() if getattr(one, "_no_weight_decay", False)
    }
    assert undecayed == {"A_logs", "Ds"}


def test_the_twin_passes_on_what_the_scan_would_read():
    block, twin = drawn(), drawn(ssm="off")
    gone = {"x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"}
    names = dict(block.named_parameters()).keys()
    assert dict(twin.named_parameters()).keys() == names - gone
    x = torch.randn(2, 5, 7, 6)
    assert relative(twin(x), by_loops(twin, x)) < 2e-6
    assert not torch.allclose(block(x), twin(x))


def test_the_scan_is_float32_under_autocast():
    """The scan's own error stays that of float32: only its inputs are rounded to bfloat16."""
    block = drawn(12, state=16)
    u = torch.randn(1, 8, 9, 24).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block.scan(u)
    assert found.dtype == torch.float32
    assert relative(found, block.scan(u.float()).double()) < 0.02


def test_a_dropped_branch_leaves_the_input():
    block = VSSBlock(6, state=3, drop_path=0.999)
    x = torch.randn(3, 4, 5, 6)
    assert torch.equal(block.train()(x), x)
    assert torch.equal(block.eval()(x), x + block.self_attention(block.ln_1(x)))
