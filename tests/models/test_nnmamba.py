"""nnmamba: the original's counts and names, the siamese flips, the shared layer, its two heads."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch.nn import functional as F

from medplat.errors import DataError, ModelError
from medplat.models import nnmamba
from medplat.models.nnmamba import PAPER, SIX, SIXTEEN, SMALL, Config, SiameseMamba
from medplat.types import Task

TWO = Task("segment", 3, 1, 2)


def network(task: Task = TWO, **options: object) -> torch.nn.Module:
    torch.manual_seed(2)
    return nnmamba.build(Config.model_validate({**SMALL, "channels": 4, **options}), task).eval()


def shapes(task: Task, **options: object) -> dict[str, list[int]]:
    with torch.device("meta"):
        built = nnmamba.build(Config.model_validate(options), task)
    return {name: list(one.shape) for name, one in built.named_parameters()}


def count(named: dict[str, list[int]]) -> int:
    return sum(torch.Size(shape).numel() for shape in named.values())


@pytest.mark.parametrize(
    ("task", "parameters", "digest"),
    [(SIX, 15_944_958, "25b6dde2eaea0d7d"), (SIXTEEN, 15_959_598, "a8a64bc04104573b")],
)
def test_golden(task, parameters, digest):
    """Counted on the original's class; the digest is over the sorted [name, shape] pairs."""
    named = shapes(task, **PAPER)
    assert (count(named), len(named)) == (parameters, 160)
    text = json.dumps([[name, named[name]] for name in sorted(named)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_every_name_and_shape(realdata_path):
    path = realdata_path.parent / "specs" / "mamba_keys.json"
    if not path.is_file():
        pytest.skip(f"real data not found at {path}")
    wanted = json.loads(path.read_text(encoding="utf-8"))["nnmamba_seg"]["params"]
    assert shapes(SIX, **PAPER) == wanted


def test_twins():
    on, off, removed = (shapes(SIX, **PAPER, ssm=ssm) for ssm in ("on", "off", "removed"))
    assert (count(off), count(removed)) == (15_878_654, 15_184_254)
    gone = {name.partition(".mamba.")[2] for name in on.keys() - off.keys()}
    assert gone == {"x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"}
    assert all(".1.mamba_layer." in name for name in on.keys() - removed.keys())


def test_the_head_is_the_only_difference_of_the_paper_repo():
    ours, paper = shapes(SIX), shapes(SIX, **PAPER)
    assert {name for name in ours.keys() | paper.keys() if ours.get(name) != paper.get(name)} == {
        "conv8.conv.4.weight"
    }
    assert ours["conv8.conv.4.weight"] == [6, 6, 1, 1, 1]
    x = torch.randn(1, 1, 16, 32, 16)
    assert network(**PAPER)(x).min() >= 0
    assert network()(x).min() < 0


def test_the_siamese_mean_is_over_four_separate_passes():
    torch.manual_seed(0)
    layer = SiameseMamba(6, 3, "on")
    tokens = torch.randn(2, 7, 6)
    wanted = layer.mamba(tokens)
    wanted = wanted + layer.mamba(tokens.flip(2)).flip(2)
    wanted = wanted + layer.mamba(tokens.flip(1)).flip(1)
    wanted = wanted + layer.mamba(tokens.flip(1, 2)).flip(1, 2)
    found = layer.siamese(tokens)
    assert torch.allclose(found, wanted / 4, atol=1e-6)
    for axes in ((1,), (2,), (1, 2)):  # so flipping what goes in flips what comes out
        assert torch.allclose(layer.siamese(tokens.flip(axes)).flip(axes), found, atol=1e-6)


def test_the_layer_runs_in_both_blocks_on_their_input_and_is_one():
    """Gradients of two uses add up in the one set of parameters."""
    net = network().train()
    stage = net.layer2
    seen: list[torch.Tensor] = []
    stage[1].mamba_layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.randn(2, 8, 4, 4, 8)
    stage(x).square().sum().backward()
    first = stage[0](x)
    assert len(seen) == 2
    assert torch.allclose(seen[0], first, atol=1e-5)
    assert stage[2].mamba_layer is None
    assert all(one.grad is not None for one in stage.parameters())


def test_a_block_in_plain_terms():
    """Shortcut + second batch norm + Mamba layer of the input, then ReLU."""
    stage = network().layer1
    x = torch.randn(1, 4, 6, 4, 4)
    block, layer = stage[1], stage[1].mamba_layer
    first = stage[0](x)
    inner = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(first)))))
    second = F.relu(inner + layer(first) + first)
    block = stage[2]
    inner = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(second)))))
    assert torch.allclose(stage(x), F.relu(inner + layer(second) + second), atol=1e-6)


def test_skips_are_weighed_and_stand_after_the_map_from_below():
    net = network()
    x = torch.randn(1, 1, 16, 32, 48)
    seen: dict[str, torch.Tensor] = {}
    for name in ("in_conv", "layer1", "layer2", "layer3", "conv5", "conv6", "conv7"):
        module = net.get_submodule(name)
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    given: list[torch.Tensor] = []
    net.conv7.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    net(x)
    halves = {name: tuple(one.shape[1:]) for name, one in seen.items()}
    assert halves == {
        "in_conv": (4, 8, 16, 24),
        "layer1": (8, 4, 8, 12),
        "layer2": (16, 2, 4, 6),
        "layer3": (32, 1, 2, 3),
        "conv5": (16, 2, 4, 6),
        "conv6": (8, 4, 8, 12),
        "conv7": (4, 8, 16, 24),
    }
    skip = seen["in_conv"]
    hidden = F.relu(net.att1.layer1(skip.mean((2, 3, 4))))
    weight = net.att1.layer2(hidden).sigmoid().view(1, 4, 1, 1, 1)
    below = F.interpolate(seen["conv6"], scale_factor=2, mode="trilinear")
    assert torch.allclose(given[0], torch.cat([below, skip * weight], 1), atol=1e-6)


def original_file(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The shared layer under both of its names, as the original's files hold it."""
    state = net.state_dict()
    twice = {
        name.replace(".1.mamba_layer.", ".2.mamba_layer."): one.clone()
        for name, one in state.items()
        if ".1.mamba_layer." in name
    }
    return {**state, **twice}


def test_weights_with_both_names_of_the_shared_layer():
    net, other = network(**PAPER), network(**PAPER)
    for parameter in other.parameters():
        parameter.data.normal_()
    state = original_file(net)
    assert len(state) > len(net.state_dict())
    other.load_state_dict(nnmamba.import_keys(state), strict=True)
    x = torch.randn(1, 1, 16, 16, 32)
    assert torch.equal(net(x), other(x))
    second = {name: one for name, one in state.items() if ".1.mamba_layer." not in name}
    assert nnmamba.import_keys(second).keys() == net.state_dict().keys()


@pytest.mark.parametrize("key", ["norm2.running_var", "mamba.A_log"])
def test_weights_whose_shared_layer_differs_are_refused(key):
    state = original_file(network(**PAPER))
    state[f"layer2.2.mamba_layer.{key}"] += 1
    with pytest.raises(ModelError, match=rf"layer2\.1\.mamba_layer\.{key}.*share"):
        nnmamba.import_keys(state)


def test_a_size_that_is_no_multiple_is_refused():
    with pytest.raises(DataError, match=r"multiples of 16.*to 16x32x16 for instance"):
        network()(torch.zeros(1, 1, 16, 20, 16))


def test_the_twins_are_of_the_same_shape_and_other_functions():
    """In train mode: batch norm then shows differences, whatever the start values."""
    net, off, removed = (network(ssm=ssm).train() for ssm in ("on", "off", "removed"))
    for twin in (off, removed):
        twin.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(2, 1, 16, 32, 16)
    with torch.no_grad():
        on, without, none = net(x), off(x), removed(x)
    assert on.shape == without.shape == none.shape
    assert not torch.allclose(on, without, atol=1e-5)
    assert not torch.allclose(without, none, atol=1e-5)
