"""Neighborhood attention against a dense attention with NATTEN's rule written token by token."""

from __future__ import annotations

import attention_gates as gates
import pytest
import torch
from torch.nn import functional as F

from medplat_kernels import last_backend, neighborhood_attention
from medplat_kernels.neighborhood_attention.reference import (
    neighborhood_attention_reference,
    window,
)

CASES = [  # shape, kernel, dilation, width
    ((12, 9), 3, 1, 32),
    ((11, 19), (3, 5), 1, 16),
    ((20, 17), 7, 2, 16),
    ((11, 19), (4, 2), (2, 3), 20),
    ((5, 5), 5, 1, 8),
    ((3, 1), (3, 1), 1, 64),
    ((17, 2), (1, 2), 1, 16),
    ((6, 7, 9), 3, 1, 16),
    ((5, 9, 6), (3, 5, 2), (1, 1, 3), 24),
    ((4, 4, 4), 4, 1, 3),
]


def inputs(shape, width, dtype=torch.float32, batch=2, heads=2):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, batch, heads, *shape, width).to(dtype)
    return [q * 3, k, v]


def reference(kernel, dilation, dims):
    kernel, dilation = ((n,) * dims if isinstance(n, int) else n for n in (kernel, dilation))
    return lambda q, k, v: neighborhood_attention_reference(q, k, v, kernel, dilation)


def test_the_rule_of_natten():
    """Windows of seven tokens: inward at both borders; two classes of four and three, dilated."""
    assert [window(i, 7, 3, 1) for i in range(7)] == [
        [0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6], [4, 5, 6],
    ]  # fmt: skip
    assert [window(i, 7, 3, 2) for i in range(7)] == [
        [0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5], [2, 4, 6], [1, 3, 5], [2, 4, 6],
    ]  # fmt: skip
    assert [window(i, 4, 2, 1) for i in range(4)] == [[0, 1], [0, 1], [1, 2], [2, 3]]


@pytest.mark.parametrize(("shape", "kernel", "dilation", "width"), CASES)
@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_equals_the_reference(shape, kernel, dilation, width, backend):
    gates.check(
        lambda q, k, v: neighborhood_attention(q, k, v, kernel, dilation, backend=backend),
        reference(kernel, dilation, len(shape)),
        inputs(shape, width),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_other_types(dtype, backend):
    backend = "torch" if dtype == torch.float64 else backend
    gates.check(
        lambda q, k, v: neighborhood_attention(q, k, v, 3, 2, backend=backend),
        reference(3, 2, 2),
        inputs((13, 9), 16, dtype),
    )


@pytest.mark.parametrize("shape", [(9, 12), (4, 5, 6)])
def test_a_kernel_of_the_whole_map_is_torchs_own_attention(shape):
    q, k, v = inputs(shape, 16)
    found = neighborhood_attention(q, k, v, shape, scale=0.3)
    flat = (x.flatten(2, -2).double() for x in (q, k, v))
    wanted = F.scaled_dot_product_attention(*flat, scale=0.3)
    assert gates.error(found.flatten(2, -2), wanted) < 1e-6
    assert torch.equal(neighborhood_attention(q, k, v, 1), v)


@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_a_key_outside_the_neighborhood_has_no_weight(backend):
    q, k, v = inputs((20, 20), 16)
    far = v.clone()
    far[:, :, 12:] = 1e30
    near, hidden = (neighborhood_attention(q, k, x, 5, backend=backend) for x in (v, far))
    assert torch.equal(near[:, :, :10], hidden[:, :, :10])


@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_views_are_read_in_place_and_the_output_lies_as_q(backend):
    q, k, v = torch.randn(2, 9, 10, 3, 4, 16).permute(3, 0, 4, 1, 2, 5)
    found = neighborhood_attention(q, k, v, 3, backend=backend)
    wanted = neighborhood_attention(*(x.contiguous() for x in (q, k, v)), 3, backend=backend)
    assert torch.equal(found, wanted)
    assert found.movedim(1, -2).is_contiguous()


def test_gradcheck_compile_and_choice():
    small = [x.double().requires_grad_() for x in inputs((3, 5), 2, batch=1)]
    for function in (reference(3, 1, 2), lambda q, k, v: neighborhood_attention(q, k, v, 3)):
        assert torch.autograd.gradcheck(function, small)
    gates.compiled(lambda q, k, v: neighborhood_attention(q.sin(), k, v, 3), inputs((9, 10), 16))
    assert last_backend("neighborhood_attention") == "numba"


@pytest.mark.parametrize("tests", [gates.QUICK, pytest.param(None, marks=pytest.mark.slow)])
def test_opcheck(tests):
    op = torch.ops.medplat.neighborhood_attention_forward.default
    q, k, v = (x.requires_grad_() for x in inputs((6, 5), 16))
    arguments = (q, k, v, None, [3, 3, 1, 1], 0.25, "")
    torch.library.opcheck(op, arguments, **({"test_utils": tests} if tests else {}))


def test_the_edges_of_what_fits():
    q = torch.zeros(1, 1, 6, 5, 4)
    assert neighborhood_attention(q, q, q, 3, (2, 1)).shape == q.shape
    with pytest.raises(ValueError, match="does not fit a map"):
        neighborhood_attention(q, q, q, 3, 2)
    with pytest.raises(ValueError, match="kernel_size must be an integer from 1 up, or 2 of them"):
        neighborhood_attention(q, q, q, (3, 3, 3))
    with pytest.raises(ValueError, match="differ in shape"):
        neighborhood_attention(q, q[:, :, 1:], q[:, :, 1:], 3)
    for empty in (q[:0], q[:, :, :0]):
        assert neighborhood_attention(empty, empty, empty, 3).shape == empty.shape
