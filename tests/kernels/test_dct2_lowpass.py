"""The low-pass DCT against scipy, Parseval, and the sum that defines it."""

from __future__ import annotations

import attention_gates as gates
import pytest
import scipy.fft
import torch
from torch.utils.flop_counter import FlopCounterMode

from medplat_kernels import dct2_lowpass, flop_formulas, idct2
from medplat_kernels.dct2_lowpass import dct_lowpass, idct
from medplat_kernels.dct2_lowpass.reference import dct_lowpass_reference, idct_reference
from medplat_kernels.dct2_lowpass.torch import matrix

CASES = [
    ((8, 8), (4, 4)),
    ((7, 5), (7, 1)),
    ((1, 9), (1, 4)),
    ((56, 56), (14, 14)),
    ((6, 5, 4), (2, 5, 3)),
]


def maps(shape, dtype=torch.float64, batch=2, channels=3):
    torch.manual_seed(0)
    return torch.randn(batch, channels, *shape).to(dtype)


@pytest.mark.parametrize(("shape", "keep"), CASES)
def test_equals_scipy(shape, keep):
    x = maps(shape)
    axes = tuple(range(2, x.dim()))
    corner = (..., *(slice(k) for k in keep))
    whole = torch.from_numpy(scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=axes))
    found = dct_lowpass(x, keep)
    assert (found - whole[corner]).abs().max() < 1e-12
    filled = torch.zeros_like(whole)
    filled[corner] = found
    back = torch.from_numpy(scipy.fft.idctn(filled.numpy(), type=2, norm="ortho", axes=axes))
    assert (idct(found, shape) - back).abs().max() < 1e-12
    if len(shape) == 2:
        assert torch.equal(dct2_lowpass(x, *keep), found)
        assert torch.equal(idct2(found, *shape), idct(found, shape))


@pytest.mark.parametrize(("shape", "keep"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_reference(shape, keep, dtype):
    gates.check(
        lambda x: dct_lowpass(x, keep), lambda x: dct_lowpass_reference(x, keep),
        [maps(shape, dtype)],
    )  # fmt: skip
    gates.check(lambda c: idct(c, shape), lambda c: idct_reference(c, shape), [maps(keep, dtype)])


@pytest.mark.parametrize("size", [1, 2, 7, 56])
def test_the_matrix_is_orthonormal(size):
    one = torch.eye(size, dtype=torch.float64)
    for dtype, most in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        rows = matrix(size, size, dtype, torch.device("cpu"))
        assert (rows @ rows.mT - one.to(dtype)).abs().max() <= most


def test_parseval_constant_image_and_idempotence():
    x = maps((12, 9))
    low = dct2_lowpass(x, 5, 4)
    back = idct2(low, 12, 9)
    lost = x.square().sum() - low.square().sum()
    assert float((lost - (x - back).square().sum()).abs() / lost) < 1e-9
    assert (dct2_lowpass(back, 5, 4) - low).abs().max() < 1e-12
    flat = dct2_lowpass(torch.full((1, 1, 12, 9), 3.0, dtype=torch.float64), 5, 4)
    assert flat[0, 0, 0, 0] == pytest.approx(3 * (12 * 9) ** 0.5)
    assert flat.flatten()[1:].abs().max() < 1e-12


def test_gradcheck_twice_and_compile():
    x = maps((8, 8), batch=1, channels=1).requires_grad_()
    for function in (lambda x: dct2_lowpass(x, 4, 3), lambda x: dct_lowpass_reference(x, (4, 3))):
        assert torch.autograd.gradcheck(function, [x])
    assert torch.autograd.gradgradcheck(lambda x: idct2(dct2_lowpass(x, 4, 3) ** 2, 8, 8), [x])
    gates.compiled(lambda x: idct2(dct2_lowpass(x.sin(), 4, 3) * 2, 8, 8), [maps((8, 8))])


@pytest.mark.parametrize("tests", [gates.QUICK, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "sizes"), [("forward", [4, 3]), ("backward", [9, 8])])
def test_opcheck(name, sizes, tests):
    op = getattr(torch.ops.medplat, f"dct_lowpass_{name}").default
    arguments = (maps((8, 8), torch.float32).requires_grad_(), sizes, "")
    torch.library.opcheck(op, arguments, **({"test_utils": tests} if tests else {}))


def test_views_empty_maps_and_nothing_kept():
    x = maps((8, 6))
    turned = x.mT.contiguous().mT
    assert gates.error(dct2_lowpass(turned, 4, 3), dct2_lowpass(x, 4, 3)) < 1e-13
    assert dct2_lowpass(x, 0, 3).shape == (2, 3, 0, 3)
    assert dct2_lowpass(x[:0], 4, 3).shape == (0, 3, 4, 3)
    assert not idct2(x[..., :0], 8, 6).any()
    assert idct2(x[..., :0], 8, 6).shape == (2, 3, 8, 6)


def test_float32_under_autocast():
    x = maps((8, 8), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dct2_lowpass(x, 4, 4), dct2_lowpass(x, 4, 4))
        assert dct2_lowpass(x.bfloat16(), 4, 4).dtype == torch.float32


def test_only_kept_rows_are_multiplied():
    """(k/n)-fold products: H W k_w, then k_w H k_h, for each channel."""
    with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
        dct2_lowpass(maps((56, 48)), 14, 12)
    assert counter.get_total_flops() == 2 * 6 * (56 * 48 * 12 + 12 * 56 * 14)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: dct2_lowpass(x, 9, 4), "frequencies can't be kept"),
        (lambda x: dct2_lowpass(x, -1, 4), "frequencies can't be kept"),
        (lambda x: dct2_lowpass(x, 4.5, 4), "frequencies can't be kept"),
        (lambda x: dct2_lowpass(x[0], 4, 4), r"\(B, C\) and 2 axes"),
        (lambda x: idct2(x, 7, 8), "smaller than its coefficients"),
        (lambda x: idct2(x.long(), 8, 8), "must be floating"),
        (lambda x: idct2(x[0], 8, 8), "c must be"),
    ],
)
def test_refuses_in_one_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call(maps((8, 8)))
