"""Window attention on CPU: that of `window_cross_attention`, with its `shift`."""

from medplat_kernels.window_cross_attention.numba import backward, can_run, forward

__all__ = ["backward", "can_run", "forward"]
