"""Self-attention over short sequences, by the scale-attention operator."""

from __future__ import annotations

from torch import Tensor, nn

from medplat_kernels import scale_attention


class SelfAttention(nn.Module):
    """Attention of (M, S, D) with one linear layer for q, k and v and one for the output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(M, S, D) -> (M, S, D)."""
        count, length, width = x.shape
        qkv = self.qkv(x).view(count, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(scale_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return out
