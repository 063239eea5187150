"""Window attention in torch operations: that of `window_cross_attention`, with its `shift`."""

from medplat_kernels.window_cross_attention.torch import backward, can_run, forward

__all__ = ["backward", "can_run", "forward"]
