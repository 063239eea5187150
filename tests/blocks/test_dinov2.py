"""DINOv2's transformer: its integers, positions on other grids, masked tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medplat.blocks.dinov2 import Dinov2, Embeddings, Layer
from medplat.errors import DataError


def test_parameters_of_the_base_size() -> None:
    """12 layers of 768: with positions for 224 and for 518 pixels; two layers alone."""
    with torch.device("meta"):
        for network, count in (
            (Dinov2(grid=(16, 16)), 85_725_696),
            (Dinov2(), 86_580_480),
            (nn.Sequential(Layer(768, 12), Layer(768, 12)), 14_178_816),
        ):
            assert sum(one.numel() for one in network.parameters()) == count
        assert Dinov2()(torch.empty(1, 3, 518, 518)).shape == (1, 1370, 768)


@pytest.mark.parametrize(("dims", "size"), [(2, (28, 56)), (3, (14, 28, 42))])
def test_other_sizes_move_the_learnt_positions(dims: int, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    part = Embeddings(dims, 1, 8, 14, (4,) * dims)
    grid = tuple(side // 14 for side in size)
    mode = {2: "bicubic", 3: "trilinear"}[dims]
    learnt = part.position_embeddings[:, 1:].transpose(1, 2).reshape(1, 8, *(4,) * dims)
    wanted = F.interpolate(learnt, size=grid, mode=mode, align_corners=False).flatten(2)
    got = part.positions(grid)
    assert torch.equal(got[:, 1:], wanted.transpose(1, 2))
    assert torch.equal(got[:, :1], part.position_embeddings[:, :1])
    assert part.positions((4,) * dims) is part.position_embeddings
    assert part(torch.zeros(2, 1, *size)).shape == (2, 1 + len(wanted[0, 0]), 8)


def test_hidden_tokens_hide_their_pixels_and_no_others() -> None:
    torch.manual_seed(0)
    part = Embeddings(2, 1, 8, 14, (2, 2))
    x = torch.randn(1, 1, 28, 28)
    hidden = torch.tensor([[False, True, False, False]])
    other = x.clone()
    other[:, :, :14, 14:] = 7.0
    assert torch.equal(part(x, hidden), part(other, hidden))
    assert torch.equal(part(x, hidden)[:, [0, 1, 3, 4]], part(x)[:, [0, 1, 3, 4]])
    assert not torch.equal(part(x), part(other))


def test_a_layer_is_the_formula() -> None:
    torch.manual_seed(0)
    layer = Layer(12, 3).double()
    nn.init.normal_(layer.layer_scale1.lambda1)
    nn.init.normal_(layer.layer_scale2.lambda1)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    own = layer.attention.attention
    y = layer.norm1(x)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        q, k, v = (own[name](y)[..., part] for name in ("query", "key", "value"))
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 2, dim=-1) @ v)
    x1 = x + layer.layer_scale1.lambda1 * layer.attention.output["dense"](torch.cat(heads, -1))
    hidden = layer.mlp["fc1"](layer.norm2(x1))
    gelu = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    wanted = x1 + layer.layer_scale2.lambda1 * layer.mlp["fc2"](gelu)
    torch.testing.assert_close(layer(x), wanted)


def test_sizes_that_are_not_whole_patches_are_refused() -> None:
    with pytest.raises(DataError, match="multiples of 14, the image is 28x30"):
        Dinov2(width=8, layers=1, heads=2, grid=(2, 2))(torch.zeros(1, 3, 28, 30))
