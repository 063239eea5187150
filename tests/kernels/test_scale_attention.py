"""Scale attention against plain products, at DuoFormer's sequence lengths and the odd ones."""

from __future__ import annotations

import attention_gates as gates
import pytest
import torch
from torch.nn import functional as F

from medplat_kernels import dispatch, last_backend, scale_attention, small_attention
from medplat_kernels.dispatch import BackendError
from medplat_kernels.scale_attention.reference import scale_attention_reference


def inputs(length, width=64, dtype=torch.float32, sequences=5, heads=3):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, sequences, heads, length, width).to(dtype)
    return [q * 3, k, v]


@pytest.mark.parametrize("length", [2, 3, 6, 18, 22, 31, 32, 86])
@pytest.mark.parametrize("width", [64, 20])
@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_equals_the_reference(length, width, backend):
    backend = "torch" if length < 3 else backend
    gates.check(
        lambda *x: scale_attention(*x, backend=backend),
        scale_attention_reference,
        inputs(length, width),
    )


@pytest.mark.parametrize("length", [1, 2, 16, 18, 33, 86])
@pytest.mark.parametrize(("readout", "width"), [(0, 64), (-1, 20), (0, 5)])
@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_readout_is_one_row_of_all(length, readout, width, backend):
    gates.check(
        lambda *x: scale_attention(*x, readout=readout, backend=backend),
        lambda *x: scale_attention_reference(*x, readout=readout),
        inputs(length, width),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_readout_of_packed_half_precision_by_two_workers(dtype, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(dispatch.module("scale_attention", "numba"), "LEAST_READ", 1)
    packed = torch.randn(5, 22, 3, 3, 16).to(dtype).permute(2, 0, 3, 1, 4)
    gates.check(
        lambda *x: scale_attention(*x, readout=1, backend="numba"),
        lambda *x: scale_attention_reference(*x, readout=1),
        [packed[0] * 3, packed[1], packed[2]],
    )


def test_readout_takes_large_scores_and_hides_no_nan():
    q, k, v = inputs(22)
    found = scale_attention(q * 200, k, v, readout=0)
    assert last_backend("scale_attention") == "numba"
    wanted = scale_attention_reference(q.double() * 200, k.double(), v.double(), readout=0)
    assert gates.error(found, wanted) < 1e-3
    k[0, 0, 7, 3] = torch.nan
    wrong = scale_attention(q, k, v, readout=0).isnan()
    assert wrong[0, 0].all()
    assert not wrong[1:].any()


@pytest.mark.parametrize("readout", [86, 0.5])
def test_readout_of_no_query(readout):
    with pytest.raises(ValueError, match="is not one of 86 queries"):
        scale_attention(*inputs(86), readout=readout)


@pytest.mark.parametrize("readout", [None, -1])
def test_sequences_taken_in_parts_equal_those_taken_at_once(readout, monkeypatch):
    def run(*x):
        return scale_attention(*x, readout=readout, backend="torch")

    monkeypatch.setattr(small_attention, "SCORES", 50)
    gates.check(run, lambda *x: scale_attention_reference(*x, readout=readout), inputs(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("length", [6, 86])
@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_other_types(dtype, length, backend):
    backend = "torch" if dtype == torch.float64 else backend
    gates.check(
        lambda *x: scale_attention(*x, backend=backend), scale_attention_reference,
        inputs(length, 32, dtype),
    )  # fmt: skip


def test_torchs_own_attention_with_a_scale():
    q, k, v = inputs(22)
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=0.3)
    assert gates.error(scale_attention(q, k, v, scale=0.3), wanted) < 1e-6


def test_one_token_returns_its_value_and_none_nothing():
    q, k, v = inputs(1)
    assert torch.equal(scale_attention(q, k, v), v)
    for empty in (inputs(0)[0], q[:0], q[:, :0]):
        assert scale_attention(empty, empty, empty).shape == empty.shape


@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_the_views_of_a_packed_projection(backend):
    q, k, v = torch.randn(6, 22, 3, 4, 16).permute(2, 0, 3, 1, 4)
    found = scale_attention(q, k, v, backend=backend)
    wanted = scale_attention(*(x.contiguous() for x in (q, k, v)), backend=backend)
    assert torch.equal(found, wanted)
    assert found.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_large_scores_do_not_overflow(backend):
    """Scores of some thousands, which float32 holds to some 1e-4: each query takes one value."""
    q, k, v = inputs(22)
    found = scale_attention(q * 200, k, v, backend=backend)
    wanted = scale_attention_reference(q.double() * 200, k.double(), v.double())
    assert gates.error(found, wanted) < 1e-3


def test_gradcheck_compile_and_choice():
    small = [x.double().requires_grad_() for x in inputs(4, 2, sequences=2, heads=1)]
    for function in (scale_attention_reference, scale_attention):
        assert torch.autograd.gradcheck(function, small)
    gates.compiled(lambda q, k, v: scale_attention(q.sin(), k, v, readout=0), inputs(6))
    gates.compiled(lambda q, k, v: scale_attention(q.sin(), k, v), inputs(6))
    assert last_backend("scale_attention") == "numba"
    with pytest.raises(BackendError, match="products are faster"):
        scale_attention(*inputs(2), backend="numba")


@pytest.mark.parametrize("tests", [gates.QUICK, pytest.param(None, marks=pytest.mark.slow)])
def test_opcheck(tests):
    op = torch.ops.medplat.scale_attention_forward.default
    arguments = (*(x.requires_grad_() for x in inputs(6)), None, [], 0.25, "")
    torch.library.opcheck(op, arguments, **({"test_utils": tests} if tests else {}))


def test_autocast_and_refusals():
    q, k, v = inputs(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scale_attention(q, k.bfloat16(), v).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="one floating type"):
        scale_attention(q, k.double(), v)
    with pytest.raises(ValueError, match="q and k need 4 axes"):
        scale_attention(q[0], k[0], v[0])
    with pytest.raises(ValueError, match="last axis is empty"):
        scale_attention(*inputs(3, 0))
