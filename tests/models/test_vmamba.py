"""vmamba: both versions, and weights of the first release's names."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medplat.errors import DataError
from medplat.models import vmamba
from medplat.types import Task

TASK = Task("classify", 2, 3, 5)
SECOND = {**vmamba.SMALL, **vmamba.V2}


def network(options=vmamba.SMALL):
    torch.manual_seed(7)
    return vmamba.build(vmamba.Config(**options), TASK).eval()


@pytest.mark.parametrize("options", [vmamba.SMALL, SECOND])
def test_logits_of_any_multiple_of_32(options):
    net = network(options)
    assert net(torch.randn(2, 3, 64, 96)).shape == (2, 5)
    with pytest.raises(DataError, match="multiples of 32"):
        net(torch.randn(1, 3, 64, 40))


def test_the_first_releases_names_are_renamed():
    net = network()
    former = {}
    for name, one in net.state_dict().items():
        old = name.replace("patch_embed.0.", "patch_embed.proj.")
        old = old.replace("patch_embed.2.", "patch_embed.norm.").replace("classifier.", "")
        old = old.replace(".op.", ".self_attention.")
        if ".blocks." in old:
            old = old.replace(".norm.", ".ln_1.")
        former[old] = one
    assert {"norm.weight", "head.bias", "layers.0.downsample.norm.weight"} <= former.keys()
    for state in (former, dict(net.state_dict())):
        assert vmamba.import_keys(state).keys() == net.state_dict().keys()


def test_the_second_version_has_no_gate_and_a_feed_forward_part():
    net = network(SECOND)
    block = net.layers[0].blocks[0]
    assert block.op.in_proj.weight.shape == (16, 8)
    assert block.op.conv2d.bias is None
    x = torch.randn(1, 4, 6, 8)
    h = x + block.op(F.layer_norm(x, (8,)))
    wanted = h + block.mlp.fc2(F.gelu(block.mlp.fc1(F.layer_norm(h, (8,)))))
    assert torch.allclose(block(x), wanted, atol=1e-6)
