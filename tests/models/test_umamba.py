"""umamba: the original's counts and names, its plan rules, tokens, skips, and repeated names."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch.nn import functional as F

from medplat.errors import DataError, ModelError, WorkflowError
from medplat.models import umamba
from medplat.models.umamba import FLAT, SMALL, SOLID, Config, plan_of
from medplat.types import Task

ENC = {"where": "enc"}
THREE, TWO = Task("segment", 3, 2, 3), Task("segment", 2, 2, 3)


def network(task: Task = THREE, **options: object) -> torch.nn.Module:
    torch.manual_seed(5)
    return umamba.build(Config.model_validate({**SMALL, **options}), task).eval()


def shapes(task: Task, **options: object) -> dict[str, list[int]]:
    with torch.device("meta"):
        built = umamba.build(Config.model_validate(options), task)
    return {name: list(one.shape) for name, one in built.named_parameters()}


def count(named: dict[str, list[int]]) -> int:
    return sum(torch.Size(shape).numel() for shape in named.values())


GOLDEN = {
    "umamba_bot_3d": ({}, SOLID, 42_130_054, 207, "bbe1d6f2f571c27f"),
    "umamba_enc_3d": (ENC, SOLID, 42_808_664, 262, "39676aaa877e042d"),
    "umamba_bot_2d": ({}, FLAT, 47_533_012, 247, "eef815520890be6b"),
    "umamba_enc_2d": (ENC, FLAT, 47_015_538, 280, "83f34cda7eecb199"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    """Counted on the original's class; the digest is over the sorted [name, shape] pairs."""
    options, task, parameters, tensors, digest = GOLDEN[name]
    named = shapes(task, **options)
    assert (count(named), len(named)) == (parameters, tensors)
    text = json.dumps([[one, named[one]] for one in sorted(named)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", GOLDEN)
def test_every_name_and_shape(name, realdata_path):
    path = realdata_path.parent / "specs" / "mamba_keys.json"
    if not path.is_file():
        pytest.skip(f"real data not found at {path}")
    options, task, *_ = GOLDEN[name]
    assert shapes(task, **options) == json.loads(path.read_text(encoding="utf-8"))[name]["params"]


@pytest.mark.parametrize(
    ("task", "bot", "enc", "removed"),
    [(SOLID, 42_072_454, 42_667_864, 41_454_214), (FLAT, 47_416_276, 46_912_486, 45_837_268)],
)
def test_twins(task, bot, enc, removed):
    """Without the layers bot and enc are one network."""
    assert count(shapes(task, ssm="off")) == bot
    assert count(shapes(task, **ENC, ssm="off")) == enc
    without = shapes(task, ssm="removed")
    assert without == shapes(task, **ENC, ssm="removed")
    assert count(without) == removed
    gone = shapes(task).keys() - shapes(task, ssm="off").keys()
    assert {name.partition(".mamba.")[2] for name in gone} == {
        "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "flags", "widths", "size"),
    [
        (SOLID, {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 1}, (32, 64, 128, 256, 320, 105), (48, 160, 224)),
        (FLAT, {0: 0, 2: 0, 4: 1, 6: 1}, (32, 128, 400, 25), (320, 320)),
    ],
)
def test_tokens_are_channels_where_those_are_more(task, flags, widths, size):
    with torch.device("meta"):
        built = umamba.build(Config.model_validate(ENC), task)
    layers = built.encoder.mamba_layers
    assert {int(stage): int(layer.by_channel) for stage, layer in layers.items()} == flags
    assert tuple(layer.norm.weight.numel() for layer in layers.values()) == widths
    assert built.input_size == size


def test_a_bound_network_names_the_size_that_it_takes():
    built = network(**ENC, patch_size=(16, 8, 24))
    assert built.input_size == (16, 8, 24)
    assert built(torch.randn(1, 2, 16, 8, 24))[0].shape == (1, 3, 16, 8, 24)
    with pytest.raises(DataError, match="images of 16x8x24 only, not 16x8x16"):
        built(torch.randn(1, 2, 16, 8, 16))


def test_an_encoder_of_voxels_only_takes_any_size():
    built = network(**ENC, patch_size=(32, 32, 32))
    assert built.input_size is None
    assert built(torch.randn(1, 2, 17, 9, 13))[0].shape == (1, 3, 17, 9, 13)


@pytest.mark.parametrize("ssm", ["on", "off"])
def test_enc_case_by_case_and_every_gradient(ssm):
    """In float64: each stage normalises what the mixer before put out, small at the start."""
    net = network(**ENC, patch_size=(16, 16, 16), ssm=ssm).double()
    assert [layer.by_channel for layer in net.encoder.mamba_layers.values()] == [0, 0, 0, 1]
    x = torch.randn(2, 2, 16, 16, 16, dtype=torch.float64)
    logits = net(x)
    for one in (0, 1):
        assert torch.allclose(net(x[one : one + 1])[0], logits[0][one : one + 1], atol=1e-8)
    sum(one.square().mean() for one in logits).backward()
    assert all(one.grad.isfinite().all() and one.grad.any() for one in net.parameters())


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_mamba_layer_in_plain_terms(by_channel, residual):
    size = (2, 3, 2) if by_channel else (5, 3, 2)
    config = Config.model_validate({"residual": residual})
    layer = umamba.MambaLayer(14, size, config)
    assert layer.by_channel == by_channel
    x = torch.randn(2, 14, *size)
    tokens = x.reshape(2, 14, -1)
    if by_channel:
        mixed = layer.mamba(layer.norm(tokens))
    else:
        mixed = layer.mamba(layer.norm(tokens.permute(0, 2, 1))).permute(0, 2, 1)
    wanted = mixed.reshape(x.shape) + (x if residual else 0)
    assert torch.allclose(layer(x), wanted, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), layer(x.float()))
        assert layer(x.bfloat16()).dtype == torch.float32


def test_which_stages_have_more_than_one_block():
    """The coarse half of the encoder and of the decoder have one, whatever `convs` says."""

    def blocks(stages: int, dims: int) -> tuple[list[int], list[int]]:
        strides = (1, *[2] * (stages - 1))
        options = {"features": (4,) * stages, "strides": strides, "convs": 3}
        with torch.device("meta"):
            built = umamba.build(Config.model_validate(options), Task("segment", dims, 1, 2))
        return [len(one) for one in built.encoder.stages], [
            len(one) for one in built.decoder.stages
        ]

    assert blocks(6, 3) == ([3, 3, 3, 1, 1, 1], [3, 3, 3, 1, 1])
    assert blocks(7, 2) == ([3, 3, 3, 3, 1, 1, 1], [3, 3, 3, 3, 1, 1])
    assert blocks(4, 3) == ([3, 3, 1, 1], [3, 3, 1])
    assert blocks(5, 2) == ([3, 3, 3, 1, 1], [3, 3, 3, 1])


@pytest.mark.parametrize("task", [THREE, TWO])
def test_the_way_down_and_up(task):
    """Each block and step written out; in 2-D the last step has no skip."""
    net = network(task, convs=2)
    x = y = torch.randn(1, 2, *(16, 24, 16)[: task.spatial_dims])

    def projected(block, x):
        inner = F.leaky_relu(block.norm1(block.conv1(x)), 0.01)
        return F.leaky_relu(block.norm2(block.conv2(inner)) + block.conv3(x), 0.01)

    def plain(block, x):
        inner = F.leaky_relu(block.conv1.norm(block.conv1.conv(x)), 0.01)
        return F.leaky_relu(block.conv2.norm(block.conv2.conv(inner)) + x, 0.01)

    def stage(blocks, x):
        first, *rest = blocks
        x = projected(first, x)
        for block in rest:
            x = plain(block, x)
        return x

    y, maps = stage(net.encoder.stem, y), []
    for blocks in net.encoder.stages:
        y = stage(blocks, y)
        maps.append(y)
    y, logits = net.mamba_layer(y), []
    for step, blocks in enumerate(net.decoder.stages):
        skip = maps[-2 - step]
        up = net.decoder.upsample_layers[step].conv
        y = up(F.interpolate(y, size=skip.shape[2:], mode="nearest"))
        skipless = task.spatial_dims == 2 and step == len(net.decoder.stages) - 1
        y = stage(blocks, y if skipless else torch.cat([y, skip], 1))
        logits.insert(0, net.decoder.seg_layers[str(step)](y))
    found = net(x)
    assert len(found) == len(logits) == 3
    for one, wanted in zip(found, logits, strict=True):
        assert torch.allclose(one, wanted, atol=1e-4)


def test_deep_supervision():
    """Halved step by step, of odd sides the larger half; without it only the finest head."""
    x = torch.randn(1, 2, 17, 20, 9)
    net, alone = network(), network(deep_supervision=False)
    alone.load_state_dict(
        {name: one for name, one in net.state_dict().items() if name in alone.state_dict()}
    )
    found = net(x)
    assert [tuple(one.shape[2:]) for one in found] == [(17, 20, 9), (9, 10, 5), (5, 5, 3)]
    assert torch.equal(alone(x), found[0])
    assert {name for name, _ in net.named_parameters()} - {
        name for name, _ in alone.named_parameters()
    } == {f"decoder.seg_layers.{step}.{kind}" for step in (0, 1) for kind in ("weight", "bias")}


def test_strides_differ_by_axis():
    strides = (1, (1, 2, 2), (2, 2, 1), 2)
    assert network(strides=strides)(torch.randn(1, 2, 5, 8, 4))[0].shape == (1, 3, 5, 8, 4)
    plan = plan_of(Config.model_validate({**SMALL, "strides": strides}), 3)
    assert plan.strides == [(1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 2, 2)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"features": (4, 8)}, "give both or neither"),
        ({**SMALL, "strides": (1, 2)}, "one entry for each stage"),
        ({**SMALL, "kernels": (3, 3)}, "one entry for each stage"),
        ({**SMALL, "strides": (2, 2, 2, 2)}, "start with 1"),
        ({**SMALL, "where": "enc"}, "needs patch_size"),
    ],
)
def test_a_plan_that_does_not_hold_together(options, text):
    with pytest.raises(ValueError, match=text):
        Config.model_validate(options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strides": (1, (2, 2), 2, 2)}, r"strides: \(2, 2\) has 2 axes, the task 3"),
        ({**ENC, "patch_size": (8, 8, 12)}, r"\(8, 8, 12\) must be multiples of \(8, 8, 8\)"),
        ({**ENC, "patch_size": (8, 8, 8)}, "and one twice"),
    ],
)
def test_a_plan_that_is_not_for_the_task(options, text):
    with pytest.raises(WorkflowError, match=text):
        network(**options)


def original_file(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's tensors under all the names that the original's files give them."""
    state = dict(net.state_dict())
    for name, tensor in list(state.items()):
        for kind, index in ((".conv.", 0), (".norm.", 1)):
            if kind in name and (".conv1" + kind in name or ".conv2" + kind in name):
                state[name.replace(kind, f".all_modules.{index}.")] = tensor.clone()
    for name, tensor in list(state.items()):
        if name.startswith("encoder."):
            state[f"decoder.{name}"] = tensor.clone()
    return state


def test_repeated_names_are_left_out_once_they_are_equal():
    net, other = network(convs=2), network(convs=2)
    for parameter in other.parameters():
        parameter.data.normal_()
    state = original_file(net)
    assert any(name.startswith("decoder.encoder.") and "all_modules" in name for name in state)
    other.load_state_dict(umamba.import_keys(state), strict=True)
    x = torch.randn(1, 2, 16, 8, 8)
    assert torch.equal(net(x)[0], other(x)[0])


@pytest.mark.parametrize(
    "name", ["decoder.encoder.stem.0.conv1.bias", "encoder.stem.1.conv1.all_modules.0.bias"]
)
def test_repeated_names_that_differ_are_refused(name):
    state = original_file(network(convs=2))
    state[name] += 1
    with pytest.raises(ModelError, match=f"{name} must repeat encoder.stem"):
        umamba.import_keys(state)


def test_the_twins_are_of_the_same_shape_and_other_functions():
    net, off, removed = (network(ssm=ssm) for ssm in ("on", "off", "removed"))
    for twin in (off, removed):
        twin.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 2, 16, 16, 8)
    on, without, none = net(x)[0], off(x)[0], removed(x)[0]
    assert on.shape == without.shape == none.shape
    assert not torch.allclose(on, without, atol=1e-5)
    assert not torch.allclose(without, none, atol=1e-5)
