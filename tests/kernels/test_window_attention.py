"""Window attention, shifted or not, ragged or not, against one dense masked attention."""

from __future__ import annotations

import attention_gates as gates
import pytest
import torch
from torch.nn import functional as F

from medplat_kernels import last_backend, use
from medplat_kernels.dispatch import BackendError
from medplat_kernels.window_attention import window_attention
from medplat_kernels.window_attention.reference import window_attention_reference
from medplat_kernels.window_cross_attention import window_cross_attention
from medplat_kernels.windows import merge, partition

CASES = [  # shape, window, shift, bias, width
    ((8, 8), 4, 0, True, 32),
    ((8, 12), 4, 2, True, 16),
    ((9, 11), 4, 3, True, 20),
    ((5, 3), (4, 7), (1, 6), False, 8),
    ((7, 7), 7, 0, False, 64),
    ((1, 1), 3, 0, True, 16),
    ((4, 5, 6), 4, 2, True, 16),
    ((5, 4, 3), (2, 3, 4), (1, 0, 2), False, 24),
]


def inputs(shape, window, bias, width, dtype=torch.float32, batch=2, heads=3):
    torch.manual_seed(0)
    sides = (window,) * len(shape) if isinstance(window, int) else window
    tokens = int(torch.tensor(sides).prod())
    q, k, v = torch.randn(3, batch, heads, *shape, width).to(dtype)
    table = [torch.randn(heads, tokens, tokens).to(dtype)] if bias else []
    return [q * 3, k, v, *table]


def reference(window, shift, dims):
    window, shift = ((n,) * dims if isinstance(n, int) else n for n in (window, shift))
    return lambda q, k, v, bias=None: window_attention_reference(
        q, k, v, window, window, shift, bias
    )


@pytest.mark.parametrize(("shape", "window", "shift", "bias", "width"), CASES)
@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_equals_the_reference(shape, window, shift, bias, width, backend):
    gates.check(
        lambda q, k, v, bias=None: window_attention(q, k, v, window, shift, bias, backend=backend),
        reference(window, shift, len(shape)),
        inputs(shape, window, bias, width),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_other_types(dtype, backend):
    if backend == "numba" and dtype == torch.float64:
        with pytest.raises(BackendError, match=r"can.t take torch\.float64"):
            window_attention(*inputs((4, 4), 4, False, 8, dtype), 4, backend=backend)
        return
    gates.check(
        lambda q, k, v, bias: window_attention(q, k, v, 4, 1, bias, backend=backend),
        reference(4, 1, 2),
        inputs((9, 6), 4, True, 32, dtype),
    )


@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_many_keys_take_the_fused_path(backend):
    """7^3 keys: torch's fused kernel, with and without a gradient for the bias."""
    q, k, v, bias = inputs((7, 8, 7), 7, True, 16, batch=1, heads=2)
    gates.check(
        lambda q, k, v: window_attention(q, k, v, 7, 2, bias, backend=backend),
        lambda q, k, v: reference(7, 2, 3)(q, k, v, bias.double()),
        [q, k, v],
    )
    gates.check(
        lambda *x: window_attention(*x[:3], 7, 2, x[3], backend=backend), reference(7, 2, 3),
        [q, k, v, bias],
    )  # fmt: skip


@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_views_are_read_in_place_and_the_output_lies_as_q(backend):
    torch.manual_seed(1)
    packed = torch.randn(2, 9, 10, 3, 4, 16)  # B, H, W, (q, k, v), h, d
    q, k, v = packed.permute(3, 0, 4, 1, 2, 5)
    found = window_attention(q, k, v, 4, 2, backend=backend)
    wanted = window_attention(*(x.contiguous() for x in (q, k, v)), 4, 2, backend=backend)
    assert torch.equal(found, wanted)
    assert found.movedim(1, -2).is_contiguous()
    flipped = torch.randn(2, 4, 9, 16, 10).mT  # the last axis is not dense
    assert torch.equal(
        window_attention(flipped, k, v, 4, backend=backend),
        window_attention(flipped.contiguous(), k, v, 4, backend=backend),
    )


@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_tokens_that_meet_by_the_roll_do_not_see_one_another(backend):
    q, k, v = inputs((8, 8), 4, False, 16)
    v2 = v.clone()
    v2[:, :, :2] = 1e30
    before, after = (window_attention(q, k, x, 4, 2, backend=backend) for x in (v, v2))
    assert torch.equal(before[:, :, 2:], after[:, :, 2:])
    assert (after[:, :, :2] > 1e29).all()


@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_one_window_is_torchs_own_attention(backend):
    q, k, v = inputs((5, 7), 7, False, 32)
    found = window_attention(q, k, v, 7, scale=0.3, backend=backend)
    flat = (x.flatten(2, -2).double() for x in (q, k, v))
    wanted = F.scaled_dot_product_attention(*flat, scale=0.3)
    assert gates.error(found.flatten(2, -2), wanted) < 1e-6


def test_a_window_of_one_token_returns_its_value():
    q, k, v = inputs((6, 2), 1, False, 3)
    assert torch.equal(window_attention(q, k, v, 1), v)


def test_gradcheck_and_compile():
    small = [x.double().requires_grad_() for x in inputs((3, 5), 2, True, 2, batch=1, heads=2)]
    for function in (reference(2, 1, 2), lambda q, k, v, b: window_attention(q, k, v, 2, 1, b)):
        assert torch.autograd.gradcheck(function, small)
    gates.compiled(
        lambda q, k, v, b: window_attention(q.sin(), k, v, 4, 2, b) * 2, inputs((5, 6), 4, True, 16)
    )


@pytest.mark.parametrize("tests", [gates.QUICK, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["window_attention", "window_cross_attention"])
def test_opcheck(name, tests):
    op = getattr(torch.ops.medplat, f"{name}_forward").default
    q, k, v, bias = (x.requires_grad_() for x in inputs((5, 6), 4, True, 16))
    arguments = (q, k, v, bias, [4, 4, 4, 4, 0, 0], 0.25, "")
    torch.library.opcheck(op, arguments, **({"test_utils": tests} if tests else {}))


@pytest.mark.parametrize("backend", gates.BACKENDS)
@pytest.mark.parametrize("which", range(4))
def test_gradient_of_any_subset(which, backend):
    tensors = inputs((5, 6), 4, True, 16)
    leaves = [x.requires_grad_(i == which) for i, x in enumerate(tensors)]
    out = window_attention(*leaves[:3], 4, 1, leaves[3], backend=backend)
    (alone,) = torch.autograd.grad(out.square().sum(), leaves[which])
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = window_attention(*leaves[:3], 4, 1, leaves[3], backend=backend)
    together = torch.autograd.grad(out.square().sum(), leaves)[which]
    assert gates.error(alone, together) < 1e-6


@pytest.mark.parametrize("shape", [(0, 2, 5, 6, 8), (2, 0, 5, 6, 8), (2, 2, 0, 6, 8)])
def test_nothing_in_nothing_out(shape):
    q = torch.zeros(shape, requires_grad=True)
    out = window_attention(q, q, q, 4)
    assert out.shape == shape
    out.sum().backward()
    assert q.grad.shape == shape


def test_autocast_lowers_as_torchs_attention_does():
    q, k, v, bias = inputs((8, 8), 4, True, 32)
    wanted = window_attention(q, k, v, 4, 0, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = window_attention(q, k.double().float(), v, 4, 0, bias)
    assert found.dtype == torch.bfloat16
    assert gates.error(found, wanted) < 1e-2


def test_the_backend_that_was_asked_for_runs():
    q, k, v = inputs((8, 8), 4, False, 16)
    for name in gates.BACKENDS:
        with use(name):
            window_attention(q, k, v, 4)
        assert last_backend("window_attention") == name
    window_attention(q, k, v, 4)
    assert last_backend("window_attention") == "numba"
    with pytest.raises(BackendError, match="no backend 'magic'"):
        window_attention(q, k, v, 4, backend="magic")
    with pytest.raises(BackendError, match=r"2 queries .* products are faster"):
        window_attention(q, k, v, (1, 2), backend="numba")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": 0}, "window must be an integer from 1 up, or 2 of them, got"),
        ({"window": (4, 4, 4)}, "window must be an integer from 1 up, or 2 of them"),
        ({"window": 2.5}, "window must be an integer from 1 up, or 2 of them, got 2.5"),
        ({"shift": 4}, "shift must be smaller than the window"),
        ({"shift": -1}, "shift must be an integer from 0 up"),
        ({"bias": torch.zeros(3, 16, 15)}, "bias must have shape"),
        ({"bias": torch.zeros(3, 16, 16, dtype=torch.int64)}, "a floating type"),
        ({"bias": torch.zeros(3, 16, 16, device="meta")}, "bias is on meta and q on cpu"),
        ({"k": torch.zeros(2, 3, 8, 9, 16)}, "differ in shape"),
        ({"v": torch.zeros(2, 3, 8, 8, 16).double()}, "one floating type"),
        ({"q": torch.zeros(3, 8, 8, 16)}, "need 5 or 6 axes"),
    ],
)
def test_refuses_in_one_sentence(change, said):
    q, k, v = inputs((8, 8), 4, False, 16)
    with pytest.raises(ValueError, match=said):
        window_attention(**{"q": q, "k": k, "v": v, "window": 4, **change})


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (2, 3, 5), (6, 4, 2), (1, 1)])
@pytest.mark.parametrize("shift", [0, 1])
def test_merge_undoes_partition(shape, shift):
    x = torch.randn(2, 3, *shape, 4)
    window, by = (2,) * len(shape), (shift,) * len(shape)
    tokens = partition(x, window, by)
    assert torch.equal(merge(tokens, torch.empty_like(x), window, by), x)
    # The first window is the corner of the map, row-major.
    if not shift and min(shape) > 1:
        corner = x[(0, slice(None), *(slice(0, 2) for _ in shape))].flatten(1, -2)
        assert torch.equal(tokens[0], corner)


CROSS = [  # queries, keys, windows, bias
    ((16, 16), (8, 8), 8, 4, True),
    ((10, 14), (5, 7), 4, 2, True),
    ((9, 13), (5, 7), 4, 2, True),
    ((5, 9, 4), (3, 5, 2), 4, 2, True),
    ((6, 3), (4, 2), (3, 3), (2, 2), False),
    ((2, 6), (6, 6), (1, 3), (3, 3), False),
]


@pytest.mark.parametrize(("queries", "keys", "window_q", "window_k", "bias"), CROSS)
@pytest.mark.parametrize("backend", gates.BACKENDS)
def test_cross_equals_the_reference(queries, keys, window_q, window_k, bias, backend):
    dims = len(queries)
    sides = [(n,) * dims if isinstance(n, int) else n for n in (window_q, window_k)]
    torch.manual_seed(2)
    tokens = [int(torch.tensor(side).prod()) for side in sides]
    tensors = [torch.randn(2, 3, *shape, 24) for shape in (queries, keys, keys)]
    tensors += [torch.randn(3, *tokens)] if bias else []
    gates.check(
        lambda q, k, v, b=None: window_cross_attention(
            q, k, v, window_q, window_k, b, backend=backend
        ),
        lambda q, k, v, b=None: window_attention_reference(q, k, v, *sides, (0,) * dims, b),
        tensors,
    )


def test_cross_refuses_windows_that_do_not_tile_in_step():
    q, k = torch.zeros(1, 1, 9, 9, 8), torch.zeros(1, 1, 4, 5, 8)
    with pytest.raises(ValueError, match="windows along its axes"):
        window_cross_attention(q, k, k, 4, 2)
    with pytest.raises(ValueError, match="batch, heads and width"):
        window_cross_attention(q, torch.zeros(1, 2, 5, 5, 8), torch.zeros(1, 2, 5, 5, 8), 4, 2)


def test_cross_compiles():
    torch.manual_seed(3)
    q, k, v = torch.randn(1, 2, 9, 9, 16), *torch.randn(2, 1, 2, 5, 5, 16)
    gates.compiled(lambda q, k, v: window_cross_attention(q, k, v, 4, 2), [q, k, v])
