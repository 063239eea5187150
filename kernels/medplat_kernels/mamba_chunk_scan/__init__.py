"""The scan of Mamba-2 (state-space duality), with mamba_ssm's `mamba_chunk_scan_combined`.

    dt_t = clamp(softplus(dt_t + dt_bias))
    h_t  = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T          one number A a head, h (P, N)
    y_t  = h_t C_t + D x_t,   out = y silu(z)

Source: Dao and Gu, Transformers are SSMs, arXiv 2405.21060, section 6. PyTorch only: inside a
chunk it is matrix products, so autograd, torch.compile and every device come with it.
"""

from __future__ import annotations

from .interface import example, mamba_chunk_scan_combined

__all__ = ["example", "mamba_chunk_scan_combined"]
