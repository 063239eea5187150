"""unet is MONAI's network: same numbers, any size, and its own encoder for classify."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet

from medplat.models import unet
from medplat.types import Task


@pytest.mark.parametrize(("dims", "shape"), [(2, (16, 24)), (3, (8, 16, 8))])
def test_equals_monai_where_no_padding_is_needed(dims, shape):
    torch.manual_seed(0)
    ours = unet.build(unet.Config(channels=(4, 8, 16)), Task("segment", dims, 2, 3))
    torch.manual_seed(0)
    theirs = UNet(dims, 2, 3, channels=(4, 8, 16), strides=(2, 2), num_res_units=2, norm="instance")
    x = torch.randn(2, 2, *shape)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("shape", [(17, 20, 24), (1, 1, 1), (37, 50), (5, 3)])
@pytest.mark.parametrize("strides", [None, (1, 2)])
def test_any_size_returns_its_own(shape, strides):
    config = unet.Config(channels=(4, 8, 16), strides=strides, residual_units=1)
    segment = unet.build(config, Task("segment", len(shape), 1, 3))
    assert segment(torch.randn(1, 1, *shape)).shape == (1, 3, *shape)
    classify = unet.build(config, Task("classify", len(shape), 1, 5))
    assert classify(torch.randn(2, 1, *shape)).shape == (2, 5)


def test_padding_is_behind_the_image():
    """The first voxels of a padded run equal those of the image with zeros put behind it."""
    network = unet.build(unet.TINY, Task("segment", 2, 1, 3)).eval()
    x = torch.randn(1, 1, 13, 10)
    padded = torch.zeros(1, 1, 16, 12)
    padded[..., :13, :10] = x
    assert torch.equal(network(x), network(padded)[..., :13, :10])


def test_classify_is_the_encoder_of_the_same_network():
    config, dims = unet.Config(channels=(4, 8, 16), residual_units=2), 2
    torch.manual_seed(0)
    classify = unet.build(config, Task("classify", dims, 1, 3))
    torch.manual_seed(0)
    whole = UNet(dims, 1, 3, channels=(4, 8, 16), strides=(2, 2), num_res_units=2, norm="instance")
    x = torch.randn(2, 1, 16, 16)
    level0, level1 = whole.model, whole.model[1].submodule
    features = level1[1].submodule(level1[0](level0[0](x)))
    assert torch.equal(classify.encoder(x), features)
    wanted = classify.head(features.mean((2, 3)))
    assert torch.allclose(classify(x), wanted)


def test_wrong_number_of_strides_is_refused():
    with pytest.raises(ValueError, match="strides needs 2 numbers"):
        unet.Config(channels=(4, 8, 16), strides=(2,))
