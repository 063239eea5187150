"""mambair: heads, the colours' mean, the two skips of a block."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medplat.errors import WorkflowError
from medplat.models import mambair
from medplat.types import Task


def network(channels: int = 1, upscale: int = 1, **options):
    torch.manual_seed(4)
    config = mambair.Config(**{**mambair.SMALL, **options})
    return mambair.build(config, Task("restore", 2, channels, channels, upscale)).eval()


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("upscale", [1, 2, 3, 4])
def test_the_output_is_upscale_times_the_input(light, upscale):
    x = torch.rand(1, 1, 7, 9)
    assert network(upscale=upscale, light=light)(x).shape == (1, 1, 7 * upscale, 9 * upscale)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_denoising_adds_to_the_input(channels):
    net = network(channels)
    torch.nn.init.zeros_(net.conv_last.weight)
    torch.nn.init.zeros_(net.conv_last.bias)
    x = torch.rand(1, channels, 6, 5)
    assert torch.allclose(net(x), x, atol=1e-6)


def test_the_mean_is_taken_off_colours_only_and_is_not_stored():
    assert network(3).mean.flatten().tolist() == pytest.approx([0.4488, 0.4371, 0.4040])
    assert network(1).mean.flatten().tolist() == [0.0]
    assert "mean" not in network(3).state_dict()
    net = network(3, upscale=2)
    for name in ("weight", "bias"):
        torch.nn.init.zeros_(getattr(net.conv_last, name))
    assert torch.equal(net(torch.rand(1, 3, 4, 4)), net.mean.expand(1, 3, 8, 8))


@pytest.mark.parametrize("light", [False, True])
def test_a_block_has_two_weighted_skips(light):
    torch.manual_seed(6)
    config = mambair.Config(**{**mambair.SMALL, "light": light})
    block = mambair.RestorationBlock(config, 0.0)
    for scale in (block.skip_scale, block.skip_scale2):
        scale.data = torch.randn(12)
    x = torch.randn(2, 5, 4, 12)
    h = x * block.skip_scale + block.self_attention(F.layer_norm(x, (12,)))
    y = F.layer_norm(h, (12,)).permute(0, 3, 1, 2)
    layers = list(block.conv_blk.cab)
    for layer in layers[:-1]:
        y = layer(y)
    narrow, wide = layers[-1].attention[1], layers[-1].attention[3]
    weight = wide(narrow(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
    wanted = h * block.skip_scale2 + (y * weight).permute(0, 2, 3, 1)
    assert torch.allclose(block(x), wanted, atol=1e-6)


def test_a_light_block_sees_as_far_as_its_dilation():
    """1x1, 3x3 and 3x3 with holes of 2: a voxel reaches three to each side, before attention."""
    block = mambair.ConvBlock(4, 2, light=True).double()
    layers = block.cab[:-1]
    x = torch.zeros(1, 4, 11, 11, dtype=torch.double)
    other = x.clone()
    other[..., 5, 5] = 1.0
    reached = (layers(x) - layers(other)).abs().sum((0, 1)) > 0
    rows = reached.any(1).nonzero().flatten()
    assert (rows.min(), rows.max()) == (2, 8)


def test_other_channels_out_than_in_are_refused():
    with pytest.raises(WorkflowError, match="gives back the channels that it gets, here 2"):
        mambair.build(mambair.TINY, Task("restore", 2, 2, 1))
