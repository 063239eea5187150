"""medmamba: two halves of a block, shuffled; the start values; sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medplat.errors import DataError
from medplat.models import medmamba
from medplat.types import Task

TASK = Task("classify", 2, 3, 4)


def test_a_block_is_two_halves_shuffled_and_the_input():
    torch.manual_seed(2)
    block = medmamba.SplitBlock(6, state=3, drop_path=0.0, ssm="on").eval()
    x = torch.randn(2, 4, 5, 6)
    near = block.conv33conv33conv11(x[..., :3].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    far = block.self_attention(F.layer_norm(x[..., 3:], (3,), eps=1e-6))
    shuffled = torch.cat([near, far], -1)[..., [0, 3, 1, 4, 2, 5]]
    assert torch.allclose(block(x), shuffled + x, atol=1e-6)


def test_start_values():
    net = medmamba.build(medmamba.Config(), TASK)
    conv = net.layers[1].blocks[0].conv33conv33conv11[1]
    assert conv.weight.std().item() == pytest.approx((2 / (96 * 9)) ** 0.5, rel=0.05)
    assert net.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    step = F.softplus(net.layers[1].blocks[0].self_attention.dt_projs_bias)
    assert step.min() >= 1e-4
    assert step.std() > 0.01


def test_logits_of_any_multiple_of_32():
    net = medmamba.build(medmamba.TINY, TASK).eval()
    assert net(torch.randn(2, 3, 224, 32)).shape == (2, 4)
    with pytest.raises(DataError, match=r"multiples of 32.*to 128x128 for instance"):
        net(torch.randn(2, 3, 112, 112))


def test_the_twin_is_another_function():
    torch.manual_seed(3)
    net, twin = (medmamba.build(one, TASK).eval() for one in (medmamba.TINY, medmamba.TWIN))
    for parameter in net.parameters():  # at the start the branches weigh little
        parameter.data += 0.2 * torch.randn_like(parameter)
    twin.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 64)
    assert (net(x) - twin(x)).abs().max() > 1e-3
