"""The selective scan of Mamba-1, with the signature of mamba_ssm's `selective_scan_fn`.

    dt_t = softplus(delta_t + delta_bias)
    h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t        h_0 = initial_state, or 0
    y_t  = sum_n C_t h_t + D u_t
    out  = y silu(z)

Source: Gu and Dao, Mamba, arXiv 2312.00752, equations 2 and 3 and algorithm 2. State and
accumulation are float32 whatever the dtype of the inputs (float64 for float64 inputs).

What a backend (`selective_scan.<backend>`) exports, all tensors contiguous:

    can_run(u, A, groups: int, *, raise_error=False) -> Verdict
    forward(u, delta, A, B, C, D, z, delta_bias, initial_state, *, delta_softplus, orders, grid,
            channels_last, out_dtype, save) -> (out, checkpoints, last_state)
    backward(grad_out, grad_last_state, u, delta, A, B, C, D, z, delta_bias, initial_state,
             checkpoints, *, delta_softplus, orders, grid, channels_last)
        -> (du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state)

With K = len(orders), everything at raster positions: u (Bt, D, L), shared by the orders, or
(Bt, K*D, L); delta (Bt, K*D, L); A (K*D, N); B, C (Bt, G, N, L), G a multiple of K that divides
K*D, channel c uses group c // (K*D / G), so order k owns rows k*D..(k+1)*D and G/K groups; D and
delta_bias (K*D,); z and out (Bt, D, L); initial_state, last_state and grad_last_state
(Bt, K*D, N). With `channels_last`: u, delta, z and out (Bt, L, channels), B and C (Bt, L, G, N).
A, D, delta_bias and the states are float32 (float64 when u is); u, delta, B, C and z have one
dtype; grad_out is contiguous, of dtype `out_dtype`. `orders` is a tuple of ScanOrder; `grid` has
L tokens, and order.walk(grid) with order.reverse give the memory walk. `checkpoints` is float32
(float64), flat, `checkpoint_size(batch, channels, states, length)` elements: the states every 64
steps in the backend's own arrangement, or empty when not `save`. Gradients have the dtype of what
they belong to; those of absent arguments are None. L and Bt are at least 1; N may be 0 on torch.
"""

from __future__ import annotations

from .interface import example, selective_scan_fn, selective_scan_vmamba_fn
from .ops import CHECKPOINT_STEPS, checkpoint_size

__all__ = [
    "CHECKPOINT_STEPS",
    "checkpoint_size",
    "example",
    "selective_scan_fn",
    "selective_scan_vmamba_fn",
]
