"""The acceptance tests of wau_unet, numbered as in its specification."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from medplat.blocks.conv import linear_upsample
from medplat.blocks.window_up import WindowAttentionUp
from medplat.models import wau_unet
from medplat.types import Task
from medplat_kernels import flop_formulas
from medplat_kernels.window_cross_attention import window_cross_attention


def operator(dims: int = 2, window: int = 4, **options) -> WindowAttentionUp:
    """An operator whose output layers and bias table are not zero, in float64."""
    options = {"heads": 2, "zero_init": False, **options}
    torch.manual_seed(7)
    block = WindowAttentionUp(dims, 6, 5, 8, window=window, **options).double()
    if block.bias is not None:
        torch.nn.init.normal_(block.bias)
    return block


def maps(low: tuple[int, ...], high: tuple[int, ...] | None = None, batch: int = 2):
    torch.manual_seed(3)
    high = high or tuple(2 * n for n in low)
    x = torch.randn(batch, 6, *low, dtype=torch.float64)
    return x, torch.randn(batch, 5, *high, dtype=torch.float64)


def branch(block: WindowAttentionUp, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    return block(x, skip) - linear_upsample(block.below(x), skip.shape[2:])


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (3, 4, 5)])
def test_1_zero_init_is_linear_upsampling(shape):
    block = WindowAttentionUp(len(shape), 6, 5, 8, heads=2, window=4)
    x, skip = (tensor.float() for tensor in maps(shape))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    wanted = F.interpolate(block.below(x), scale_factor=2, mode=mode, align_corners=False)
    assert torch.equal(block(x, skip), wanted)


@pytest.mark.parametrize(("shape", "window"), [((3, 4), 8), ((4, 4), 8), ((2, 3, 2), 6)])
def test_2_one_window_is_global_attention(shape, window):
    block = operator(len(shape), window, bias="none")
    x, skip = maps(shape)
    y = block.below(x)
    t = block.lateral(skip.flatten(2).mT)
    q = block.query(block.norm_query(t))
    k, v = block.key_value(block.norm_key(y.flatten(2).mT)).chunk(2, -1)
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (q, k, v))
    a = block.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    a = a + block.feed(block.norm_feed(a))
    wanted = a.mT.unflatten(-1, skip.shape[2:])
    assert (block.attention(y, skip) - wanted).abs().max() < 1e-12
    single = block.float().attention(y.float(), skip.float())
    assert (single - wanted).abs().max() < 1e-6


def test_3_a_window_does_not_see_its_neighbours():
    block = operator()
    x, skip = maps((6, 8))
    before = branch(block, x, skip)
    changed = x.clone()
    changed[:, :, 2:4, 4:6] += 1.0
    # The residual is linear up-sampling, which does reach across: the branch alone is compared.
    y, z = block.below(x), block.below(changed)
    inside = torch.zeros(12, 16, dtype=torch.bool)
    inside[4:8, 8:12] = True
    first, second = block.attention(y, skip), block.attention(z, skip)
    assert torch.equal(first[..., ~inside], second[..., ~inside])
    assert (first - second)[..., inside].abs().min() > 0
    assert (before - first).abs().max() < 1e-12


@pytest.mark.parametrize("low", [(4, 4), (5, 3)])
def test_4_zero_keys_give_the_mean_of_the_real_values(low):
    block = operator(bias="none")
    width = 8
    with torch.no_grad():
        block.key_value.weight[:width] = 0
        block.key_value.bias[:width] = 0
        for layer in block.feed:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.zero_()
                layer.bias.zero_()
    x, skip = maps(low)
    y = block.below(x)
    result = block.attention(y, skip)
    values = block.key_value(block.norm_key(y.movedim(1, -1)))[..., width:]
    for i, j in itertools.product(range(0, low[0], 2), range(0, low[1], 2)):
        wanted = block.out(values[:, i : i + 2, j : j + 2].mean((1, 2)))
        found = result[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
        assert (found - wanted[:, :, None, None]).abs().max() < 1e-12


@pytest.mark.parametrize("low", [(5, 7), (3, 5, 2)])
@pytest.mark.parametrize("less", [0, 1])
def test_5_ragged_windows_equal_those_cut_out(low, less):
    """Every axis even and odd, the skip 2h or 2h - 1; windows of 4 voxels."""
    block = operator(len(low))
    x, skip = maps(low, tuple(2 * n - less for n in low))
    y = block.below(x)
    whole = branch(block, x, skip)
    for corner in itertools.product(*(range(0, n, 2) for n in low)):
        inner = (..., *(slice(i, i + 2) for i in corner))
        outer = (..., *(slice(2 * i, 2 * i + 4) for i in corner))
        alone = block.attention(y[inner], skip[outer])
        assert alone.shape == whole[outer].shape
        assert (whole[outer] - alone).abs().max() < 1e-12


@pytest.mark.parametrize("dims", [2, 3])
def test_6_cost_is_linear_in_voxels(dims):
    block = operator(dims)

    def flops(side: int) -> int:
        x, skip = maps((side,) * dims, batch=1)
        counting = FlopCounterMode(display=False, custom_mapping=flop_formulas())
        with counting as counter, torch.no_grad():
            block(x, skip)
        return counter.get_total_flops()

    assert flops(8) == 2**dims * flops(4)


@pytest.mark.parametrize(("dims", "window", "keys"), [(2, 8, 16), (3, 4, 8)])
def test_7_attention_against_sdpa_with_masks_and_bias(dims, window, keys):
    """The operator against torch's, on 64 queries and 16 or 8 keys, windows ragged by one voxel."""
    half, batch, heads = window // 2, 3, 2
    low, high = (half + 1,) * dims, (window + 2,) * dims
    torch.manual_seed(0)
    q = torch.randn(batch, heads, *high, 32)
    k, v = torch.randn(2, batch, heads, *low, 32)
    bias = torch.randn(heads, 64, keys)
    found = window_cross_attention(q, k, v, window, half, bias)
    for corner in itertools.product((0, 1), repeat=dims):
        outer = (..., *(slice(window * i, window * (i + 1)) for i in corner), slice(None))
        inner = (..., *(slice(half * i, half * (i + 1)) for i in corner), slice(None))
        asked, keyed, valued = q[outer], k[inner], v[inner]
        real = [torch.cartesian_prod(*map(torch.arange, x.shape[2:-1])) for x in (asked, keyed)]
        rows, columns = (
            (place * side ** torch.arange(dims - 1, -1, -1)).sum(1)
            for place, side in zip(real, (window, half), strict=True)
        )
        wanted = F.scaled_dot_product_attention(
            *(x.flatten(2, -2) for x in (asked, keyed, valued)),
            attn_mask=bias[:, rows[:, None], columns[None]],
        )
        assert (found[outer].flatten(2, -2) - wanted).abs().max() < 2e-6


def test_7_padding_never_reads_memory_that_nobody_wrote(monkeypatch):
    """With every fresh allocation filled with NaN, ragged windows still give the same numbers."""
    block = operator()
    x, skip = maps((5, 7))
    wanted = block(x, skip)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        found = block(x, skip)
        assert torch.isfinite(torch.autograd.grad(found.sum(), block.query.weight)[0]).all()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, wanted)


INTEGERS = [
    (2, {}, 10_296_351, 9_503_331),
    (3, {}, 28_245_899, 27_452_579),
    (2, {"channels": (8, 16, 32), "heads": (1, 2), "window": 4}, 39_223, 35_899),
    (3, {"channels": (8, 16, 32), "heads": (1, 2), "window": 4}, 106_979, 103_115),
]


@pytest.mark.parametrize(("dims", "options", "wau", "linear"), INTEGERS)
def test_8_parameter_integers(dims, options, wau, linear):
    for up, wanted in (("wau", wau), ("linear", linear)):
        with torch.device("meta"):
            config = wau_unet.Config(**options, up=up)
            network = wau_unet.build(config, Task("segment", dims, 1, 3))
        assert sum(weight.numel() for weight in network.parameters()) == wanted


@pytest.mark.parametrize(
    ("c", "co", "cs", "heads", "window", "dims"), [(6, 8, 5, 2, 4, 2), (16, 8, 8, 1, 4, 3)]
)
def test_8_parameters_of_one_operator(c, co, cs, heads, window, dims):
    block = WindowAttentionUp(dims, c, cs, co, heads=heads, window=window, mlp_ratio=3)
    wanted = c * co + co + cs * co + co + 6 * co + 4 * co**2 + 4 * co
    wanted += 2 * 3 * co**2 + (3 + 1) * co + heads * (2 * window - 2) ** dims
    assert sum(weight.numel() for weight in block.parameters()) == wanted


@pytest.mark.parametrize(("shape", "wau", "linear"), [((256, 256), 15.39, 13.38)])
def test_8_multiply_adds(shape, wau, linear):
    """Counted on the meta device in the 2-D default; to 1 % (norms and biases are not counted)."""
    for up, wanted in (("wau", wau), ("linear", linear)):
        with torch.device("meta"), torch.no_grad():
            network = wau_unet.build(wau_unet.Config(up=up), Task("segment", 2, 1, 3))
            x = torch.zeros(1, 1, *shape)
            with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
                network(x)
        assert counter.get_total_flops() / 2e9 == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("shape", [(37, 50), (17, 20, 24), (3, 2), (1, 1, 1)])
@pytest.mark.parametrize("up", ["wau", "linear", "transposed", "pixelshuffle", "attention_gate"])
def test_9_any_size_returns_its_own(shape, up):
    config = wau_unet.Config(**wau_unet.SMALL, up=up)
    network = wau_unet.build(config, Task("segment", len(shape), 2, 3))
    logits = network(torch.randn(1, 2, *shape))
    assert logits.shape == (1, 3, *shape)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_10_every_entry_of_the_bias_table_is_used(dims):
    block = operator(dims)
    assert block.bias.shape == (2, 6**dims)
    x, skip = maps((4,) * dims)
    block(x, skip).square().sum().backward()
    assert (block.bias.grad != 0).all()


def test_10_bias_is_by_relative_position():
    """Entry of query i and key j along one axis: i - 2j + M - 2, axes combined row-major."""
    block = operator(2, 4)
    block.bias.data[0] = torch.arange(36.0)
    table = block._bias()[0].reshape(4, 4, 2, 2)
    for i0, i1, j0, j1 in itertools.product(range(4), range(4), range(2), range(2)):
        wanted = (i0 - 2 * j0 + 2) * 6 + (i1 - 2 * j1 + 2)
        assert table[i0, i1, j0, j1] == wanted


@pytest.mark.parametrize("high", [(9, 14), (11, 14), (12, 14)])
def test_a_skip_of_another_size_is_refused(high):
    block = operator()
    x, skip = maps((5, 7), high)
    if high == (9, 14):
        assert block(x, skip).shape[2:] == high
    else:
        with pytest.raises(ValueError, match="twice the voxels"):
            block(x, skip)


@pytest.mark.parametrize(
    "options", [{"window": 3}, {"heads": (1,)}, {"heads": (3, 1, 1, 1)}, {"up": "magic"}]
)
def test_config_refuses_what_cannot_be_built(options):
    with pytest.raises(ValueError, match=r".+"):
        wau_unet.Config(**options)


def test_half_precision_keeps_the_softmax_in_float32():
    block = operator().float()
    x, skip = (tensor.float() for tensor in maps((4, 4)))
    wanted = block(x, skip)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(x, skip)
    assert (found.float() - wanted).abs().max() < 0.1
