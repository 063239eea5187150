"""The scan of Mamba-2 (state-space duality), with mamba_ssm's `mamba_chunk_scan_combined`.

    dt_t = clamp(softplus(dt_t + dt_bias))
    h_t  = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T          one number A a head, h (P, N)
    y_t  = h_t C_t + D x_t,   out = y silu(z)

Source: Dao and Gu, Transformers are SSMs, arXiv 2405.21060, section 6. Inside a chunk it is matrix
products: with torch on any device, with autograd and torch.compile; on a CPU without gradients in
one numba kernel. What a backend (`mamba_chunk_scan.<backend>`) exports:

    can_run(x, recording, raise_error=False) -> Verdict
    scan(x, dt, rates, B, C, state, chunk) -> (y, last)

x (Bt, L, H, P), B and C (Bt, L, G, N) have any floating dtype and any strides; dt and rates = dt A
(Bt, L, H), state, y and last are in the type of sums. `recording`: gradients are
wanted. A rate of -1e30 lets nothing through: another sequence begins. Neither D nor z
is the backend's; y is its own new tensor.
"""

from __future__ import annotations

from .interface import example, mamba_chunk_scan_combined

__all__ = ["example", "mamba_chunk_scan_combined"]
