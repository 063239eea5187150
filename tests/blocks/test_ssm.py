"""The Mamba mixer against a loop over tokens in float64, its counts, start values and twin."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medplat.blocks.ssm import MambaMixer

SUFFIXES = ("", "_b", "_s")
SCAN_ONLY = ("x_proj{}.weight", "dt_proj{}.weight", "dt_proj{}.bias", "A{}_log", "D{}")


def drawn(channels: int = 6, **options) -> MambaMixer:
    """A mixer whose orders differ in every parameter."""
    torch.manual_seed(3)
    mixer = MambaMixer(channels, **{"state": 3, **options})
    for name, parameter in mixer.named_parameters():
        if name.endswith("_log") or name.startswith(("D", "conv1d")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return mixer


def sequence(order: str, grid: tuple[int, ...]) -> list[int]:
    """Flat voxel read at each step, written out."""
    length = torch.Size(grid).numel()
    if order == "raster":
        return list(range(length))
    if order == "raster_reversed":
        return list(range(length))[::-1]
    if order == "strided(3)":
        return [at for first in range(3) for at in range(first, length, 3)]
    assert order == "inter_slice"
    plane = length // grid[0]
    return [depth * plane + pixel for pixel in range(plane) for depth in range(grid[0])]


def branch(weight: dict[str, torch.Tensor], suffix: str, x: torch.Tensor) -> torch.Tensor:
    """One order on x (L, d), already in its sequence: convolution, SiLU and, where on, scan."""
    kernel, bias = weight[f"conv1d{suffix}.weight"][:, 0], weight[f"conv1d{suffix}.bias"]
    taps = kernel.shape[1]
    rows, out = [], []
    for step in range(len(x)):
        total = bias.clone()
        for back in range(min(taps, step + 1)):
            total = total + kernel[:, taps - 1 - back] * x[step - back]
        rows.append(total * torch.sigmoid(total))
    if f"A{suffix}_log" not in weight:
        return torch.stack(rows)
    a, skip = -weight[f"A{suffix}_log"].exp(), weight[f"D{suffix}"]
    states, rank = a.shape[1], weight[f"dt_proj{suffix}.weight"].shape[1]
    state = torch.zeros_like(a)
    for u in rows:
        row = weight[f"x_proj{suffix}.weight"] @ u
        dt = weight[f"dt_proj{suffix}.weight"] @ row[:rank] + weight[f"dt_proj{suffix}.bias"]
        dt = torch.log1p(dt.exp())[:, None]
        b, c = row[rank : rank + states], row[rank + states :]
        state = (dt * a).exp() * state + dt * b * u[:, None]
        out.append(state @ c + skip * u)
    return torch.stack(out)


def by_loops(mixer: MambaMixer, tokens: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """The whole mixer in float64, tokens (B, L, C)."""
    weight = {name: one.double() for name, one in mixer.named_parameters()}
    xz = tokens.double() @ weight["in_proj.weight"].T
    x, z = xz.chunk(2, -1)
    gate = z * torch.sigmoid(z)
    total = torch.zeros_like(x)
    for order, suffix in zip(mixer.orders, SUFFIXES, strict=False):
        walk = torch.tensor(sequence(order, grid))
        for one in range(len(x)):
            y = branch(weight, suffix, x[one, walk]) * gate[one, walk]
            total = total.index_put((torch.tensor(one), walk), y, accumulate=True)
    return total @ weight["out_proj.weight"].T


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("ssm", ["on", "off"])
@pytest.mark.parametrize(
    ("orders", "grid"),
    [
        ("raster", (13,)),
        ("raster", (1,)),
        ("bi", (11,)),
        ("bi", (3, 5)),
        (("raster", "strided(3)"), (12,)),
        ("tri3d", (3, 2, 4)),
        ("tri3d", (2, 5, 1)),
    ],
)
def test_equals_a_loop_in_float64(orders, grid, ssm):
    mixer = drawn(orders=orders, ssm=ssm)
    tokens = torch.randn(2, torch.Size(grid).numel(), 6)
    assert relative(mixer(tokens, grid), by_loops(mixer, tokens, grid)) < 2e-6


def test_other_sizes_of_the_mixer():
    """A rank above 1 (channels over 16), three taps, no doubling, sixteen states."""
    mixer = drawn(20, state=16, conv=3, expand=1, orders="bi")
    assert mixer.dt_proj.weight.shape == (20, 2)
    tokens = torch.randn(1, 9, 20)
    assert relative(mixer(tokens), by_loops(mixer, tokens, (9,))) < 2e-6


def test_gradients_equal_those_of_the_loop():
    mixer, grid = drawn(orders="tri3d"), (3, 2, 3)
    tokens, pull = torch.randn(1, 18, 6), torch.randn(1, 18, 6)
    (mixer(tokens, grid) * pull).sum().backward()
    found = {name: one.grad.clone() for name, one in mixer.named_parameters()}
    mixer.zero_grad()
    (by_loops(mixer, tokens, grid) * pull).sum().backward()
    for name, parameter in mixer.named_parameters():
        assert relative(found[name], parameter.grad.double()) < 2e-5, name


@pytest.mark.parametrize(
    ("channels", "sets", "wanted"),
    [
        (6, 1, 900),
        (32, 1, 9_920),
        (48, 1, 19_680),
        (96, 1, 68_160),
        (105, 1, 80_640),
        (192, 1, 251_520),
        (320, 1, 675_200),
        (384, 1, 963_840),
        (512, 1, 1_694_720),
        (48, 2, 25_536),
        (512, 2, 1_816_576),
        (48, 3, 31_392),
        (96, 3, 93_888),
        (192, 3, 312_192),
        (384, 3, 1_122_048),
    ],
)
def test_parameters(channels, sets, wanted):
    with torch.device("meta"):
        mixer = MambaMixer(channels, orders=("raster", "raster_reversed", "inter_slice")[:sets])
    assert sum(one.numel() for one in mixer.parameters()) == wanted


def test_start_values():
    mixer = MambaMixer(96, orders="tri3d")
    for suffix in SUFFIXES:
        projection = mixer.get_submodule(f"dt_proj{suffix}")
        step = F.softplus(projection.bias)
        assert step.min() >= 1e-4
        assert step.max() <= 0.1 + 1e-6
        assert step.log().std() > 1  # log-uniform over a factor of 100: 4.6 / sqrt(12)
        assert projection.weight.abs().max() <= 6**-0.5
        wanted = torch.arange(1.0, 17).log().expand(192, 16)
        assert torch.equal(mixer.get_parameter(f"A{suffix}_log"), wanted)
        assert torch.equal(mixer.get_parameter(f"D{suffix}"), torch.ones(192))


def test_only_a_and_d_have_no_weight_decay():
    mixer = MambaMixer(6, orders="tri3d")
    undecayed = {
        name for name, one in mixer.named_parameters() if getattr(one, "_no_weight_decay", False)
    }
    assert undecayed == {"A_log", "A_b_log", "A_s_log", "D", "D_b", "D_s"}


@pytest.mark.parametrize("orders", ["raster", "bi", "tri3d"])
def test_the_twin_has_what_the_scan_does_not_need(orders):
    mixer, twin = drawn(orders=orders), drawn(orders=orders, ssm="off")
    gone = {name.format(suffix) for suffix in mixer.suffixes for name in SCAN_ONLY}
    names = dict(mixer.named_parameters()).keys()
    assert dict(twin.named_parameters()).keys() == names - gone
    twin.load_state_dict(mixer.state_dict(), strict=False)
    tokens, grid = torch.randn(1, 24, 6), (2, 3, 4)
    assert not torch.allclose(mixer(tokens, grid), twin(tokens, grid), atol=1e-4)


@pytest.mark.parametrize("ssm", ["on", "off"])
def test_flipped_tokens_and_swapped_sets_flip_the_output(ssm):
    mixer = drawn(orders="bi", ssm=ssm)
    swapped = drawn(orders="bi", ssm=ssm)
    state = mixer.state_dict()
    other = {name.replace("_b", ""): name for name in state if "_b" in name}
    partner = other | {name: first for first, name in other.items()}
    swapped.load_state_dict({name: state[partner.get(name, name)] for name in state})
    tokens = torch.randn(2, 10, 6)
    found = swapped(tokens.flip(1)).flip(1)
    assert relative(found, mixer(tokens).double()) < 2e-6
    assert not torch.allclose(mixer(tokens.flip(1)).flip(1), mixer(tokens), atol=1e-3)


def test_only_earlier_tokens_are_seen():
    mixer = drawn()
    tokens = torch.randn(1, 12, 6)
    changed = tokens.clone()
    changed[:, 7] += 1
    differs = (mixer(tokens) - mixer(changed)).abs().amax((0, 2)) > 0
    assert differs.tolist() == [False] * 7 + [True] * 5


def test_the_scan_is_float32_under_autocast():
    """Projections round to bfloat16; the error must not grow along the tokens."""
    mixer = drawn(8, state=16)
    tokens = torch.randn(1, 200, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixer(tokens).float()
    assert relative(found, mixer(tokens).double()) < 0.03


def test_what_is_no_set_of_orders_is_refused():
    with pytest.raises(ValueError, match="at most 3 scan orders"):
        MambaMixer(4, orders=("raster",) * 4)
    with pytest.raises(ValueError, match="zigzag"):
        MambaMixer(4, orders="zigzag")
