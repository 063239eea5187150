"""The inside of a Mamba block between its two outer projections.

    x, z = xz;  x = silu(conv(x));  dt, B, C = x_proj(x);  delta = dt_proj(dt)
    out = selective_scan(x, delta, A, B, C, D, z, delta_bias)

Source: Gu and Dao, Mamba, arXiv 2312.00752, figure 3. It is a composition: `causal_conv1d` and
`selective_scan` choose their backends, the projections are torch's matrix products. Only xz and
the states every 64 steps are kept for the backward pass; the convolution and the projections are
computed again.
"""

from __future__ import annotations

from .interface import mamba_inner

__all__ = ["mamba_inner"]
