"""Similarity attention: texts look at image tokens by cosine, and tokens are keys and values.

    v^, t^ unit rows    map = t^ v^T    A = softmax_N(map / temperature)    logit = t^ . unit(A v^)

Source: RadZero, arXiv 2504.07416 (VL-CABS). A row of zeros stays zero and gets no gradient.
What a backend (`similarity_attention.<backend>`) exports:

    can_run(t, v, temperature, mask, *, raise_error=False) -> Verdict
    forward(t, v, temperature, mask) -> (logit, map, pooled, lse, inverse)
    backward(grad_logit, grad_map, t, v, temperature, mask, logit, map, pooled, lse, inverse)
        -> (dt, dv, dtemperature)

t (Bt, T, D), or (1, T, D) for all of them, and v (Bt, N, D) have one dtype and are contiguous;
temperature is a scalar tensor in the type of sums (float32; float64 for float64), mask None or
(Bt, N) bool, contiguous. All results are contiguous and in the type of sums: logit (Bt, T), map
(Bt, T, N), pooled = A v^ (Bt, T, D), lse (Bt, T) the natural logarithm of the softmax's sum (-inf
where every token is masked; A is 0 there), inverse (Bt, N) the reciprocal norms of v (0 for 0).
dt and dv have the shape and dtype of t and v. grad_logit and grad_map are contiguous. Nothing is
empty.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, empty, promote_types  # not torch: a backend of this package is called so

from medplat_kernels import dispatch
from medplat_kernels.attention_ops import wide

from .ops import as_temperature, similarity_attention_forward

__all__ = ["example", "similarity_attention"]


def similarity_attention(
    t: Tensor,
    v: Tensor,
    temperature: float | Tensor,
    *,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Score of each text for each image, and the map of cosines behind it.

    Args:
        t: (T, D), the same texts for every image, or (Bt, T, D).
        v: (Bt, N, D), tokens of each image.
        temperature: Positive; a number, or a tensor of one element, which gets a gradient.
        mask: (Bt, N) bool, tokens that the softmax counts; all unless given. The map has them all.
        backend: "triton", "numba" or "torch"; the first that can run it unless given.

    Returns:
        logit (Bt, T), a cosine, and map (Bt, T, N), cosines; float32, or float64 for float64.
        Both are not divided by the temperature.

    Raises:
        ValueError: Shapes and types do not go together.
        BackendError: The backend asked for can't run this call.
    """
    if v.dim() != 3 or t.dim() not in (2, 3):
        raise ValueError(
            "t must be (T, D) or (Bt, T, D) and v (Bt, N, D), "
            f"got {tuple(t.shape)} and {tuple(v.shape)}"
        )
    t = t if t.dim() == 3 else t.unsqueeze(0)
    if t.shape[-1] != v.shape[-1] or (t.shape[0] != 1 and t.shape[0] != v.shape[0]):
        raise ValueError(f"t {tuple(t.shape)} does not fit v {tuple(v.shape)} in batch or width")
    if not t.is_floating_point() or not v.is_floating_point():
        raise ValueError(f"t and v must be floating, got {t.dtype} and {v.dtype}")
    if mask is not None and (str(mask.dtype) != "torch.bool" or mask.shape != v.shape[:2]):
        raise ValueError(
            f"mask must be bool {tuple(v.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
        )
    dtype = promote_types(t.dtype, v.dtype)
    logit, cosines, _, _, _ = similarity_attention_forward(
        t.to(dtype).contiguous(),
        v.to(dtype).contiguous(),
        as_temperature(temperature, v.device, wide(dtype)),
        None if mask is None else mask.contiguous(),
        dispatch.asked(backend),
    )
    return logit, cosines


def example(device: str) -> tuple[Any, ...]:
    """What `can_run` gets for a small call."""
    t, v = empty(1, 2, 64, device=device), empty(1, 16, 64, device=device)
    return t, v, empty((), device=device), None
