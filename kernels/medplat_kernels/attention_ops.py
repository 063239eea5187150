"""The attention operators as torch operators, `medplat::<name>_forward` and `_backward`.

Window, neighborhood and scale attention differ in which keys a query sees, not in their arguments.
What a backend (`<name>.<backend>`) exports:

    can_run(q, k, v, bias, *places, raise_error=False) -> Verdict
    forward(q, k, v, bias, *, <places>, scale) -> (out, lse)
    backward(grad_out, q, k, v, bias, out, lse, *, <places>, scale, bias_grad)
        -> (dq, dk, dv, dbias, or None unless bias_grad)

q, k and v (B, h, *tokens, d) have one dtype and any strides, the last axis dense; bias (h, nq, nk)
is contiguous, or None. `<places>` are tuples of integers, one number an axis, under the names given
to `register`. out has the shape, dtype and memory order of q (`torch.empty_like(q)`); lse
(B, h, *tokens), contiguous, in the type of sums (float32; float64 for float64), is the natural
logarithm of the sum of exponentials of each query's scores. Gradients have the shape and dtype of
what they belong to, in any memory order; grad_out has any strides. No tensor is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .flops import formula
from .torch_operator import torch_operator

Places = Sequence[Sequence[int]]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums run in: float32, and float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type of the autocast region that the call is in, None outside one."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def register(
    operator: str, names: tuple[str, ...], keys: Callable[[Sequence[int], Places], int]
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, Places, float | None, str | None], Tensor]:
    """Make the two torch operators of an attention operator.

    Args:
        operator: Its name, one of `dispatch.OPERATORS`.
        names: What its tuples of integers are called in the backends.
        keys: Number of keys that a query sees, from the shape of k and the tuples.

    Returns:
        The operator of (q, k, v, bias, tuples, scale, backend), its arguments checked by nobody.
    """

    def split(flat: Sequence[int]) -> list[tuple[int, ...]]:
        step = len(flat) // max(1, len(names))
        return [tuple(flat[i * step : (i + 1) * step]) for i in range(len(names))]

    def chosen(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, flat: Sequence[int], backend: str
    ) -> tuple[Any, dict[str, tuple[int, ...]]]:
        places = split(flat)
        name = dispatch.choose(operator, q.device, (q, k, v, bias, *places), backend)
        dispatch.ran(operator, name)
        return dispatch.module(operator, name), dict(zip(names, places, strict=True))

    @torch_operator(f"{operator}_forward")
    def forward(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, places: Sequence[int], scale: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if q.numel() == 0 or k.numel() == 0:
            out, lse = _outputs(q)
            return out.zero_(), lse.fill_(float("-inf"))
        runner, keywords = chosen(q, k, v, bias, places, backend)
        with dispatch.without_autocast(q.device):
            result: tuple[Tensor, Tensor] = runner.forward(q, k, v, bias, **keywords, scale=scale)
        return result

    @torch_operator(f"{operator}_backward")
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor,
        lse: Tensor, places: Sequence[int], scale: float, bias_grad: bool, backend: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        if q.numel() == 0 or k.numel() == 0:
            dq, dk, dv, dbias = _gradients(q, k, v, bias, bias_grad)
            return dq.zero_(), dk.zero_(), dv.zero_(), dbias.zero_()
        runner, keywords = chosen(q, k, v, bias, places, backend)
        with dispatch.without_autocast(q.device):
            *grads, found = runner.backward(
                grad, q, k, v, bias, out, lse, **keywords, scale=scale, bias_grad=bias_grad
            )
        dq, dk, dv = (_as(x, like) for x, like in zip(grads, (q, k, v), strict=True))
        dbias = q.new_empty(0) if found is None or bias is None else found.to(bias.dtype)
        return dq, dk, dv, dbias

    forward.register_fake(lambda q, *_: _outputs(q))
    backward.register_fake(
        lambda grad, q, k, v, bias, out, lse, places, scale, bias_grad, backend: _gradients(
            q, k, v, bias, bias_grad
        )
    )

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, bias, places, scale, backend = inputs
        ctx.save_for_backward(q, k, v, bias, *output)
        ctx.rest = (places, scale, bias is not None and ctx.needs_input_grad[3], backend)
        ctx.mark_non_differentiable(output[1])

    def slope(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        *grads, dbias = backward(grad, *ctx.saved_tensors, *ctx.rest)
        return (*grads, dbias if ctx.rest[2] else None, None, None, None)

    forward.register_autograd(slope, setup_context=setup)
    backward.has_no_gradient()
    _count_flops(operator, lambda k, flat: keys(k, split(flat)))

    def attend(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, places: Places, scale: float | None,
        backend: str | None,
    ) -> Tensor:  # fmt: skip
        q, k, v = (_dense_last(x) for x in _lowered(q, k, v))
        flat = [n for place in places for n in place]
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        bias = None if bias is None else bias.contiguous()
        out: Tensor = forward(q, k, v, bias, flat, factor, dispatch.asked(backend))[0]
        return out

    return attend


def check(q: Tensor, k: Tensor, v: Tensor, dims: Sequence[int]) -> None:
    """Raise a ValueError where q, k and v can't be inputs of one attention.

    Args:
        q: (B, h, *tokens, d).
        k: As q; the number of tokens may differ.
        v: As k.
        dims: How many axes of tokens there may be.
    """
    if q.dim() - 3 not in dims or k.dim() != q.dim():
        wanted = " or ".join(str(n + 3) for n in dims)
        raise ValueError(f"q and k need {wanted} axes, got {tuple(q.shape)} and {tuple(k.shape)}")
    if k.shape != v.shape:
        raise ValueError(f"k and v differ in shape: {tuple(k.shape)} and {tuple(v.shape)}")
    if q.shape[:2] != k.shape[:2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"batch, heads and width of q {tuple(q.shape)} are not those of k {tuple(k.shape)}"
        )
    if q.shape[-1] == 0:
        raise ValueError("q has heads without width: its last axis is empty")
    lowered = autocast_type(q.device)
    if not q.is_floating_point() or not (lowered or q.dtype == k.dtype == v.dtype):
        raise ValueError(f"q, k, v need one floating type, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(
            f"q, k, v are on {q.device}, {k.device} and {v.device}: move them together"
        )


def check_bias(q: Tensor, bias: Tensor | None, queries: int, keys: int) -> None:
    """Raise a ValueError where `bias` is not (h, queries, keys), floating, beside q."""
    wanted = (q.shape[1], queries, keys)
    if bias is None:
        return
    if tuple(bias.shape) != wanted or not bias.is_floating_point():
        raise ValueError(
            f"bias must have shape {wanted} and a floating type, "
            f"got {tuple(bias.shape)} {bias.dtype}"
        )
    if bias.device != q.device:
        raise ValueError(f"bias is on {bias.device} and q on {q.device}: move them together")


def _lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Inside an autocast region, in its type, as torch's own attention does; float64 stays."""
    dtype = autocast_type(tensors[0].device)
    if dtype is None:
        return tensors
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _dense_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=wide(q.dtype))


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, bias_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty gradients; that of a bias that needs none has no element."""
    dbias = torch.empty_like(bias) if bias is not None and bias_grad else q.new_empty(0)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), dbias


def _as(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the type of `like` and the memory order of `torch.empty_like(like)`."""
    if x.dtype == like.dtype and x.stride() == like.stride():
        return x
    return torch.empty_like(like).copy_(x)


def _count_flops(operator: str, keys: Callable[[Sequence[int], Sequence[int]], int]) -> None:
    """Two products forward and five backward, of as many multiply-adds as pairs times width."""

    def pairs(q: Sequence[int], k: Sequence[int], flat: Sequence[int]) -> int:
        return 2 * math.prod(q) * keys(k, flat)

    @formula(f"{operator}_forward")
    def forward(
        q: Sequence[int], k: Sequence[int], v: object, bias: object, places: Sequence[int],
        *_: object, **__: object,
    ) -> int:  # fmt: skip
        return 2 * pairs(q, k, places)

    @formula(f"{operator}_backward")
    def backward(
        grad: object, q: Sequence[int], k: Sequence[int], v: object, bias: object, out: object,
        lse: object, places: Sequence[int], *_: object, **__: object,
    ) -> int:  # fmt: skip
        return 5 * pairs(q, k, places)
