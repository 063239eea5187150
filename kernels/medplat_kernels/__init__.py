"""Scan and attention operators with CPU and GPU paths. Imports nothing of medplat.

Every operator picks the first backend that can run a call (`explain` says which and why), runs on
the one that a `backend=` argument or `use` names, and is a torch operator: autograd, autocast,
torch.compile. Importing this package imports neither numba nor triton.
"""

from __future__ import annotations

from .causal_conv1d import causal_conv1d_fn
from .dct2_lowpass import dct2_lowpass, idct2
from .dispatch import BackendError, explain, last_backend, use
from .flops import flop_formulas
from .mamba_chunk_scan import mamba_chunk_scan_combined
from .mamba_inner import mamba_inner
from .neighborhood_attention import neighborhood_attention
from .scale_attention import scale_attention
from .scan_orders import ORDERS, SETS, ScanOrder
from .selective_scan import selective_scan_fn, selective_scan_vmamba_fn
from .similarity_attention import similarity_attention
from .window_attention import window_attention
from .window_cross_attention import window_cross_attention

__all__ = [
    "ORDERS",
    "SETS",
    "BackendError",
    "ScanOrder",
    "causal_conv1d_fn",
    "dct2_lowpass",
    "explain",
    "flop_formulas",
    "idct2",
    "last_backend",
    "mamba_chunk_scan_combined",
    "mamba_inner",
    "neighborhood_attention",
    "scale_attention",
    "selective_scan_fn",
    "selective_scan_vmamba_fn",
    "similarity_attention",
    "use",
    "window_attention",
    "window_cross_attention",
]
