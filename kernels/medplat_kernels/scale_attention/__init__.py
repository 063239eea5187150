"""Attention inside each of many tiny sequences, and for one query of each where that is enough.

Source: Tang et al., DuoFormer, PMLR 301:1495-1507, section "scale attention": the tokens of all
scales of one patch attend to one another, and after the last block only the scale token is kept.
The backends' contract is in `attention_ops`, without tuples: q (M, h, Sq, d), k and v (M, h, S, d);
bias is always None.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, empty  # not torch: a backend of this package has that name

from medplat_kernels.attention_ops import check, register

__all__ = ["example", "scale_attention"]

_attend = register("scale_attention", (), lambda k, places: k[2])


def scale_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    readout: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale q k^T) v in each sequence.

    Args:
        q: (M, h, S, d): M sequences of S tokens.
        k: As q.
        v: As q.
        scale: Factor of the products; 1 / sqrt(d) unless given.
        readout: Compute this query alone; 0 is the first, -1 the last.
        backend: "triton", "numba" or "torch"; the first that can run it unless given.

    Returns:
        (M, h, S, d), or (M, h, 1, d) with `readout`, in the type and memory order of q.

    Raises:
        ValueError: Shapes and types do not go together, or there is no such query.
        BackendError: The backend asked for can't run this call.
    """
    check(q, k, v, (1,))
    if q.shape != k.shape:
        raise ValueError(f"q and k differ in shape: {tuple(q.shape)} and {tuple(k.shape)}")
    if readout is not None:
        length = q.shape[2]
        if not isinstance(readout, int) or not -length <= readout < length:
            raise ValueError(f"readout {readout} is not one of {length} queries")
        q = q.narrow(2, readout % length, 1)
    return _attend(q, k, v, None, (), scale, backend)


def example(device: str) -> tuple[Any, ...]:
    """What `can_run` gets for a small call."""
    q = empty(1, 1, 4, 16, device=device)
    return q, q, q, None
