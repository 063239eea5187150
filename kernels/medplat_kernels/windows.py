"""Maps (B, h, *spatial, d) cut into windows of tokens, with ragged edges and shifted windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

PLACES = ("window_q", "window_k", "shift")  # what the backends of both operators take


def along(name: str, given: int | Sequence[int], dims: int, least: int = 1) -> tuple[int, ...]:
    """A whole number for each axis, from one number or one an axis.

    Raises:
        ValueError: Not one integer an axis, or one below `least`.
    """
    found = tuple(given) if isinstance(given, Sequence) else (given,) * dims
    if len(found) != dims or any(not isinstance(n, int) or n < least for n in found):
        raise ValueError(
            f"{name} must be an integer from {least} up, or {dims} of them, got {given}"
        )
    return found


def counts(shape: Sequence[int], window: Sequence[int]) -> list[int]:
    """Windows along each axis, the last one counted where it hangs over the end."""
    return [-(-size // side) for size, side in zip(shape, window, strict=True)]


def partition(x: torch.Tensor, window: Sequence[int], shift: Sequence[int]) -> torch.Tensor:
    """Cut a map into windows; zeros stand behind its far end.

    Args:
        x: (B, h, *spatial, d).
        window: Side of a window along each axis.
        shift: How far the padded map is rolled towards its start, along each axis.

    Returns:
        (B * windows, h, tokens, d); windows and the tokens in them are row-major.
    """
    dims = len(window)
    shape = x.shape[2:-1]
    missing = [-size % side for size, side in zip(shape, window, strict=True)]
    if any(missing):
        x = F.pad(x, [0, 0, *(n for size in reversed(missing) for n in (0, size))])
    if any(shift):
        x = x.roll([-s for s in shift], tuple(range(2, 2 + dims)))
    tokens = _windows_first(x, window).flatten(0, dims)
    return tokens.reshape(*tokens.shape[:2], -1, tokens.shape[-1])


def merge(
    tokens: torch.Tensor, whole: torch.Tensor, window: Sequence[int], shift: Sequence[int]
) -> torch.Tensor:
    """The inverse of `partition`, written into `whole`, which is returned."""
    dims = len(window)
    shape = whole.shape[2:-1]
    number = counts(shape, window)
    split = tokens.reshape(-1, *number, tokens.shape[1], *window, tokens.shape[-1])
    if not any(shift) and all(n * w == s for n, w, s in zip(number, window, shape, strict=True)):
        _windows_first(whole, window).copy_(split)
        return whole
    order = [n for axis in range(dims) for n in (1 + axis, 2 + dims + axis)]
    full = [n * w for n, w in zip(number, window, strict=True)]
    x = split.permute(0, 1 + dims, *order, -1).reshape(*whole.shape[:2], *full, whole.shape[-1])
    if any(shift):
        x = x.roll(list(shift), tuple(range(2, 2 + dims)))
    for axis, size in enumerate(shape, start=2):
        x = x.narrow(axis, 0, size)
    return whole.copy_(x)


def mask(
    shape: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device
) -> torch.Tensor | None:
    """Which keys of its window a query sees, where it is not all of them.

    A token sees those of its own cell of the lattice of windows that starts at `shift`. Queries
    behind the end of the map see everything, so that no softmax is empty; they are cut away.

    Returns:
        (windows, queries or 1, keys) float32, 0 or -inf; None where nothing has to be masked.
    """
    padded = [n * w for n, w in zip(counts(shape, window), window, strict=True)]
    if list(shape) == padded and not any(shift):
        return None
    cell = torch.zeros((1, 1, *padded, 1), dtype=torch.int64, device=device)
    real = torch.ones((1, 1, *padded, 1), dtype=torch.bool, device=device)
    for axis, (size, whole, side, by) in enumerate(zip(shape, padded, window, shift, strict=True)):
        place = torch.arange(whole, device=device).view(-1, *[1] * (len(padded) - axis))
        cell = cell * (whole + 1) + (place - by).div(side, rounding_mode="floor") + 1
        real = real & (place < size)
    cells, reals = (partition(x, window, shift)[:, 0, :, 0] for x in (cell, real))
    seen = reals[:, None]
    if any(shift):
        seen = seen & (cells[:, :, None] == cells[:, None]) | ~reals[:, :, None]
    return torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))


def _windows_first(x: torch.Tensor, window: Sequence[int]) -> torch.Tensor:
    """(B, h, *whole, d) as a view (B, *counts, h, *window, d)."""
    dims = len(window)
    pairs = zip(x.shape[2:-1], window, strict=True)
    split = [n for size, side in pairs for n in (size // side, side)]
    x = x.view(*x.shape[:2], *split, x.shape[-1])
    outer = [2 + 2 * axis for axis in range(dims)]
    inner = [3 + 2 * axis for axis in range(dims)]
    return x.permute(0, *outer, 1, *inner, 2 + 2 * dims)
