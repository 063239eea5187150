"""The low frequencies of an orthonormal DCT-II, and the map made of them.

X = D_h[:k] x D_w[:k]^T with D[u, i] = s_u cos(pi / n (i + 1/2) u), s_0 = sqrt(1/n), the other s_u
sqrt(2/n): one small product an axis, with the rows that are kept and no others; never an FFT. D is
orthonormal, so the transpose of the one is the other: `idct2` is the gradient of `dct2_lowpass`,
and back. The same for any number of axes: `dct_lowpass` and `idct`.

Source: Ahmed, Natarajan and Rao, Discrete cosine transform, IEEE Trans. Comput. C-23, 1974.
A backend exports can_run(x), forward(x, keep) and backward(c, shape), on (B, C, *spatial); it
returns the type of its input and sums in float32 (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, empty  # not torch: a backend of this package has that name

from medplat_kernels import dispatch

from .ops import dct_lowpass_forward, idct_forward, wide_under_autocast

__all__ = ["dct2_lowpass", "dct_lowpass", "example", "idct", "idct2"]


def dct2_lowpass(x: Tensor, keep_h: int, keep_w: int, *, backend: str | None = None) -> Tensor:
    """The first keep_h x keep_w coefficients of the orthonormal 2-D DCT-II of each map.

    Args:
        x: (B, C, H, W).
        keep_h: Frequencies kept along H, 0 to H.
        keep_w: Frequencies kept along W, 0 to W.
        backend: "torch"; the first that can run it unless given.

    Returns:
        (B, C, keep_h, keep_w), float32 for float32, under autocast too.

    Raises:
        ValueError: Not four axes, or more kept than there is.
        BackendError: The backend asked for can't run this call.
    """
    return _checked(x, (keep_h, keep_w), backend, 2)


def idct2(c: Tensor, height: int, width: int, *, backend: str | None = None) -> Tensor:
    """The map of height x width whose first coefficients are `c` and whose others are zero.

    Args:
        c: (B, C, keep_h, keep_w).
        height: H, at least keep_h.
        width: W, at least keep_w.
        backend: "torch"; the first that can run it unless given.

    Returns:
        (B, C, height, width).

    Raises:
        ValueError: Not four axes, or a map smaller than its coefficients.
        BackendError: The backend asked for can't run this call.
    """
    if c.dim() != 4:
        raise ValueError(f"c must be (B, C, keep_h, keep_w), got {tuple(c.shape)}")
    return idct(c, (height, width), backend=backend)


def dct_lowpass(x: Tensor, keep: Sequence[int], *, backend: str | None = None) -> Tensor:
    """`dct2_lowpass` over all axes behind the channels: (B, C, *spatial) -> (B, C, *keep)."""
    return _checked(x, tuple(keep), backend, len(keep))


def idct(c: Tensor, shape: Sequence[int], *, backend: str | None = None) -> Tensor:
    """`idct2` over all axes behind the channels: (B, C, *keep) -> (B, C, *shape)."""
    if c.dim() != len(shape) + 2 or not c.is_floating_point():
        raise ValueError(f"c must be floating, (B, C) and {len(shape)} axes, got {_told(c)}")
    if any(not isinstance(n, int) or n < k for n, k in zip(shape, c.shape[2:], strict=True)):
        raise ValueError(f"a map of {tuple(shape)} is smaller than its coefficients, {_told(c)}")
    out: Tensor = idct_forward(wide_under_autocast(c), list(shape), dispatch.asked(backend))
    return out


def example(device: str) -> tuple[Any, ...]:
    """What `can_run` gets for a small call."""
    return (empty(1, 1, 8, 8, device=device),)


def _checked(x: Tensor, keep: tuple[int, ...], backend: str | None, dims: int) -> Tensor:
    if x.dim() != dims + 2 or not x.is_floating_point():
        raise ValueError(f"x must be floating, (B, C) and {dims} axes, got {_told(x)}")
    fits = (isinstance(k, int) and 0 <= k <= n for k, n in zip(keep, x.shape[2:], strict=True))
    if not all(fits):
        raise ValueError(f"{keep} frequencies can't be kept of {_told(x)}: keep 0 to the size")
    out: Tensor = dct_lowpass_forward(wide_under_autocast(x), list(keep), dispatch.asked(backend))
    return out


def _told(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}"
