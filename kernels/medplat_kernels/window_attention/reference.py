"""Window attention by a dense mask: that of `window_cross_attention`, with its `shift`."""

from medplat_kernels.window_cross_attention.reference import window_attention_reference

__all__ = ["window_attention_reference"]
