"""mambamil: the original's names and shapes, padding of the strided scan, pooling, bags."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch.nn import functional as F

from medplat.models import mambamil
from medplat.models.mambamil import SLIDE, SMALL, Config, PaddedMixer
from medplat.types import Task

TINY = Task("classify", 1, 5, 2)


def tiny(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return mambamil.build(Config.model_validate({**SMALL, **changes}), TINY).eval()


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("mamba", "f532c1742d063a65"),
        ("bimamba", "9e69a5909638063b"),
        ("srmamba", "9e69a5909638063b"),
    ],
)
def test_names_and_shapes_are_the_originals(kind: str, digest: str) -> None:
    with torch.device("meta"):
        network = mambamil.build(Config(kind=kind), SLIDE)
    names = sorted([name, list(one.shape)] for name, one in network.named_parameters())
    assert hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("init", ["mamba", "paper_repo"])
def test_where_dt_starts(init: str) -> None:
    bias = tiny(init=init).get_parameter("layers.0.1.dt_proj_b.bias")
    dt = F.softplus(bias).detach()
    if init == "paper_repo":
        assert not bias.any()
    else:
        assert float(dt.min()) >= 1e-4 * 0.999
        assert float(dt.max()) <= 0.1 * 1.001


def scanned(mixer: PaddedMixer, tokens: torch.Tensor, suffix: str) -> torch.Tensor:
    """One order of a mixer on tokens (L, C) that are already in its sequence, one by one."""
    part = {key: mixer.get_submodule(f"{key}{suffix}") for key in ("conv1d", "x_proj", "dt_proj")}
    a = -torch.exp(mixer.get_parameter(f"A{suffix}_log"))
    rank, states = part["dt_proj"].in_features, a.shape[1]
    x, z = tokens.chunk(2, -1)
    kernel, taps = part["conv1d"].weight[:, 0], part["conv1d"].weight.shape[-1]
    padded = torch.cat([x.new_zeros(taps - 1, x.shape[1]), x])
    state, rows = x.new_zeros(x.shape[1], states), []
    for at in range(len(x)):
        u = F.silu((padded[at : at + taps].T * kernel).sum(1) + part["conv1d"].bias)
        dt, b, c = part["x_proj"](u).split([rank, states, states])
        dt = F.softplus(part["dt_proj"](dt))
        state = state * torch.exp(dt[:, None] * a) + (dt * u)[:, None] * b
        rows.append((state @ c + mixer.get_parameter(f"D{suffix}") * u) * F.silu(z[at]))
    return torch.stack(rows)


@pytest.mark.parametrize("pad", ["upstream", "masked"])
@pytest.mark.parametrize("length", [9, 12])
def test_the_strided_scan_and_its_padding(pad: str, length: int) -> None:
    torch.manual_seed(1)
    config = Config.model_validate({**SMALL, "pad": pad})
    mixer = PaddedMixer(16, config, "on").double()
    xz = torch.randn(1, length, 64, dtype=torch.float64)
    raster = scanned(mixer, xz[0], "")
    whole = -(-length // 4) * 4
    steps = torch.arange(whole).view(-1, 4).T.flatten()
    if pad == "masked":
        steps = steps[steps < length]
        whole = length
    tokens = F.pad(xz[0], (0, 0, 0, whole - length))
    strided = torch.empty(whole, 32, dtype=torch.float64)
    strided[steps] = scanned(mixer, tokens[steps], "_b")
    assert torch.allclose(mixer.inner(xz)[0], raster + strided[:length], atol=1e-12)


def test_padding_tokens_matter_only_where_there_are_some() -> None:
    x = torch.randn(1, 5, 9)
    with torch.no_grad():
        assert not torch.allclose(tiny()(x), tiny(pad="masked")(x), atol=1e-6)
        assert torch.allclose(tiny()(x[..., :8]), tiny(pad="masked")(x[..., :8]), atol=1e-6)


def test_a_list_of_bags_is_each_by_itself() -> None:
    network = tiny()
    bags = [torch.randn(5, size) for size in (1, 9, 4)]
    with torch.no_grad():
        together, alone = network(bags), torch.cat([network(bag[None]) for bag in bags])
    assert torch.equal(together, alone)
    assert together.shape == (3, 2)


def test_removed_pools_a_set() -> None:
    """Without Mamba layers the order of the vectors does not matter; with them it does."""
    x = torch.randn(1, 5, 12)
    with torch.no_grad():
        removed = tiny(ssm="removed")
        assert torch.allclose(removed(x), removed(x.flip(-1)), atol=1e-6)
        assert not torch.allclose(tiny()(x), tiny()(x.flip(-1)), atol=1e-5)
        assert tiny(ssm="off")(x).shape == tiny()(x).shape


def test_attention_pooling() -> None:
    network = tiny(ssm="removed")
    x = torch.randn(2, 5, 7)
    with torch.no_grad():
        h = network.norm(network._fc1(x.transpose(1, 2)))
        weights = torch.exp(network.attention(h))
        wanted = network.classifier((weights * h).sum(1) / weights.sum(1))
        assert torch.allclose(network(x), wanted, atol=1e-6)
