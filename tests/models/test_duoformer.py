"""duoformer: the paper's integers, the authors' names, the order and the reach of its tokens."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from medplat import testing
from medplat.blocks.attention import SelfAttention
from medplat.errors import DataError
from medplat.models import duoformer
from medplat.models.duoformer import Config, DuoFormer, by_patch
from medplat.types import Task

FLAT, SOLID = Task("classify", 2, 3, 2), Task("classify", 3, 1, 2)


def tiny(task: Task = FLAT, **changes: object) -> DuoFormer:
    torch.manual_seed(0)
    network = duoformer.build(Config.model_validate({**duoformer.SMALL, **changes}), task)
    assert isinstance(network, DuoFormer)
    return network.eval()


def test_trainable_parameters_of_the_frozen_run_are_the_papers_column() -> None:
    config = Config.model_validate({**duoformer.TCGA, "depth": 8, "freeze_trunk": True})
    with torch.device("meta"):
        network = duoformer.build(config, Task("classify", 2, 3, 3))
    assert sum(one.numel() for one in network.parameters() if one.requires_grad) == 124_679_683


def test_the_trunk_is_torchvisions_resnet() -> None:
    for name, count in (("resnet18", 11_176_512), ("resnet50", 23_508_032)):
        block, layers, widths = duoformer.TRUNKS[name]
        with torch.device("meta"):
            trunk = duoformer.trunk(block, layers, widths, 2, 3)
        assert testing.parameters(trunk) == count
        maps = duoformer.stages(trunk.to_empty(device="cpu").eval(), torch.zeros(1, 3, 64, 64))
        assert [one.shape[-1] for one in maps] == [16, 8, 4, 2]
    strides = [one.stride for one in trunk.modules() if isinstance(one, nn.Conv2d)]
    assert trunk.get_submodule("layer2.0.conv2").stride == (2, 2), "on the 3x3 convolution"
    assert strides[0] == (2, 2)


@pytest.mark.parametrize("by_number", [False, True])
def test_the_authors_names_map_one_to_one(by_number: bool) -> None:
    """Names as read in the authors' code, for the Utah run."""
    with torch.device("meta"):
        ours = duoformer.build(Config(), Task("classify", 2, 3, 4)).state_dict()
    theirs = {}
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    for name, tensor in ours.items():
        name = name.removeprefix("scale_token.")
        parts = name.split(".")
        if by_number and parts[0] == "resnet_projector":
            parts[1] = str(numbers[parts[1]])
        theirs[".".join(parts)] = tensor
    for name in (
        "chann_proj1.conv1.weight", "chann_proj1.conv2.bias", "chann_proj2.conv1.weight",
        "chann_proj_all.nConvs.3.norm.running_var", "projection.proj_heads1.weight",
        "projection.proj_heads3.bias", "vision_transformer.scaleBlocks.5.attn.qkv.bias",
        "vision_transformer.scaleBlocks.0.mlp.fc2.weight",
        "vision_transformer.blocks.5.attn.proj.bias", "vision_transformer.pos_embed_for_scale",
        "vision_transformer.cls_token",
        "vision_transformer.pos_embed", "vision_transformer.fc_norm.weight",
        "vision_transformer.head.bias",
        "resnet_projector.0.weight" if by_number else "resnet_projector.conv1.weight",
    ):  # fmt: skip
        assert name in theirs, name
    mapped = duoformer.import_keys(theirs)
    assert {key: value.shape for key, value in mapped.items()} == {
        key: value.shape for key, value in ours.items()
    }


def test_tokens_inside_a_patch_are_in_the_authors_order() -> None:
    """Stage 2 by columns, the others by rows; patches row-major: on maps of their own index."""
    rows, columns = 3, 5
    for side, by_column in ((1, False), (2, True), (4, False)):
        high, wide = rows * side, columns * side
        x = torch.arange(high * wide, dtype=torch.float64).view(1, 1, high, wide)
        got = by_patch(x, (rows, columns), columns=by_column)[0, :, :, 0].long()
        for patch in range(rows * columns):
            r, c = divmod(patch, columns)
            inside = [(i, j) for i in range(side) for j in range(side)]
            if by_column:
                inside = [(i, j) for j in range(side) for i in range(side)]
            wanted = [(r * side + i) * wide + c * side + j for i, j in inside]
            assert got[patch].tolist() == wanted
    x2 = torch.arange(14.0 * 14).view(1, 1, 14, 14)
    r, c = 2, 5
    assert by_patch(x2, (7, 7), columns=True)[0, 7 * r + c, :, 0].tolist() == [
        28 * r + 2 * c, 14 * (2 * r + 1) + 2 * c, 28 * r + 2 * c + 1, 14 * (2 * r + 1) + 2 * c + 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scales", "length"),
    [((3,), 2), ((2, 3), 6), ((1, 3), 18), ((1, 2, 3), 22), ((0, 1, 2, 3), 86)],
)
def test_tokens_a_patch(scales: tuple[int, ...], length: int) -> None:
    network = tiny(scales=scales)
    assert network.tokens(torch.randn(1, 3, 64, 64)).shape == (1, 4, length, 32)
    assert network.vision_transformer.pos_embed_for_scale.shape == (1, 1, length, 32)  # type: ignore[union-attr]


@pytest.mark.parametrize(("scales", "length"), [((2, 3), 10), ((1, 2, 3), 74)])
def test_tokens_a_patch_in_three_dimensions(scales: tuple[int, ...], length: int) -> None:
    network = tiny(SOLID, scales=scales, image_size=32)
    assert network.tokens(torch.randn(1, 1, 32, 32, 32)).shape == (1, 1, length, 32)


def test_scale_attention_stays_inside_its_patch_and_does_not_know_their_order() -> None:
    network = tiny(scales=(0, 1, 2, 3))
    local = network.vision_transformer.local
    x = torch.randn(2, 9, 86, 32)
    changed = x.clone()
    changed[:, 4] = torch.randn(2, 86, 32)
    with torch.no_grad():
        before, after = local(x), local(changed)
        order = torch.randperm(9)
        permuted = local(x[:, order])
    others = [at for at in range(9) if at != 4]
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.allclose(before[:, 4], after[:, 4])
    torch.testing.assert_close(permuted, before[:, order], atol=1e-5, rtol=0)


def test_local_attention_is_torchs() -> None:
    attention = SelfAttention(32, 4)
    x = torch.randn(6, 22, 32)
    with torch.no_grad():
        q, k, v = attention.qkv(x).view(6, 22, 3, 4, 8).permute(2, 0, 3, 1, 4)
        wanted = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(6, 22, 32)
        torch.testing.assert_close(attention(x), attention.proj(wanted), atol=1e-5, rtol=1e-5)


def test_a_global_block_has_no_residual_unless_asked() -> None:
    x = torch.randn(2, 5, 32)
    for residual in (False, True):
        config = Config.model_validate({**duoformer.SMALL, "global_residual": residual})
        block = duoformer.GlobalBlock(config)
        block.attn.qkv.weight.data[64:] = 0
        block.attn.qkv.bias.data[64:] = 0
        bias = block.attn.proj.bias.expand_as(x)
        assert torch.equal(block(x), x + bias if residual else bias)


def test_fc_norm_is_kept_and_not_applied() -> None:
    network = tiny()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = network(x)
        nn.init.normal_(network.vision_transformer.fc_norm.weight)
        nn.init.normal_(network.vision_transformer.fc_norm.bias)
        assert torch.equal(network(x), before)


def test_a_frozen_trunk_does_not_move() -> None:
    network = tiny(freeze_trunk=True).train()
    before = {key: value.clone() for key, value in network.resnet_projector.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in network.parameters() if one.requires_grad], 0.1)
    network(torch.randn(3, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    after = network.resnet_projector.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert network.vision_transformer.training
    assert all(one.grad is None for one in network.resnet_projector.parameters())


@pytest.mark.parametrize("token", ["random", "first", "average"])
@pytest.mark.parametrize("task", [FLAT, SOLID])
def test_other_tokens(token: str, task: Task) -> None:
    network = tiny(task, token=token, image_size=32)
    x = torch.randn(1, task.in_channels, *(32,) * task.spatial_dims)
    assert network(x).shape == (1, 2)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="built for 64x64, the image is 64x96"):
        tiny()(torch.zeros(1, 3, 64, 96))
    for wrong, why in (
        ({"image_size": 100}, "multiple of 32"),
        ({"heads": 5}, "5 heads do not divide"),
        ({"scales": (2, 2)}, "twice"),
        ({"scales": (1, 2), "token": "first"}, "add 3 to scales"),
    ):
        with pytest.raises(ValidationError, match=why):
            Config.model_validate({**duoformer.SMALL, **wrong})
