"""vm_unet: which map is added where, sizes, and weights of the original's names."""

from __future__ import annotations

import pytest
import torch

from medplat.blocks.ss2d import SS2D
from medplat.errors import DataError
from medplat.models import vm_unet
from medplat.types import Task

TWO = Task("segment", 2, 3, 2)


def network(task: Task = TWO, **options):
    torch.manual_seed(1)
    return vm_unet.build(vm_unet.Config(**{**vm_unet.SMALL, **options}), task).eval()


def test_skips_are_the_inputs_of_the_stages_added_before_expanding():
    """With every block the identity, what is left is patches, merging, expanding and sums."""
    net = network()
    for module in net.modules():
        if isinstance(module, SS2D):
            module.out_proj.weight.data.zero_()
    x = torch.randn(1, 3, 64, 32)
    first = net.patch_embed(x)
    second = net.layers[0].downsample(first)
    third = net.layers[1].downsample(second)
    fourth = net.layers[2].downsample(third)
    y = net.layers_up[1].upsample(fourth + fourth)
    y = net.layers_up[2].upsample(y + third)
    y = net.layers_up[3].upsample(y + second)
    wanted = net.final_conv(net.final_up(y).permute(0, 3, 1, 2))
    assert torch.allclose(net(x), wanted, atol=1e-6)


def test_depths_and_chances_are_those_asked_for():
    net = network(depths=(1, 2, 3, 1), depths_up=(1, 3, 2, 1), drop_path=0.3)
    assert [len(stage.blocks) for stage in net.layers] == [1, 2, 3, 1]
    assert [len(stage.blocks) for stage in net.layers_up] == [1, 3, 2, 1]
    for stages, rises in ((net.layers, True), (net.layers_up, False)):
        blocks = [block for stage in stages for block in stage.blocks]
        chances = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
        assert chances == sorted(chances, reverse=not rises)
        assert max(chances) == pytest.approx(0.3)


def test_one_channel_is_shown_three_times():
    net = network(Task("segment", 2, 1, 2))
    colour = network()
    colour.load_state_dict(net.state_dict())
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(net(x), colour(x.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("size", [(33, 64), (64, 48)])
def test_a_size_that_would_be_cut_is_refused(size):
    with pytest.raises(DataError, match=r"multiples of 32.*to 64x64 for instance"):
        network()(torch.zeros(1, 3, *size))


def test_weights_of_one_class_become_background_and_class():
    """Names as in the original's files; the softmax of two logits is its sigmoid of one."""
    original = network(Task("segment", 2, 3, 1))
    state = {f"vmunet.{name}": one for name, one in original.state_dict().items()}
    ours = network()
    ours.load_state_dict(vm_unet.import_keys(state), strict=True)
    x = torch.randn(1, 3, 32, 32)
    assert torch.allclose(ours(x).softmax(1)[:, 1:], original(x).sigmoid(), atol=1e-6)


def test_the_twin_is_of_the_same_shape_and_another_function():
    net, twin = network(), network(ssm="off")
    for parameter in net.parameters():  # at the start the branches weigh little
        parameter.data += 0.2 * torch.randn_like(parameter)
    twin.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    assert net(x).shape == twin(x).shape
    assert not torch.allclose(net(x), twin(x), atol=1e-3)
