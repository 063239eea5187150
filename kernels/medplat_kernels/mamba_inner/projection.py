"""Linear maps over the channels of K orders, each with its own weight.

Tokens are (Bt, K, channels, L), or (Bt, L, K, channels) where channels are last; weights are
(K, out, in).
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_channels(tokens: Tensor, orders: int, channels_last: bool) -> Tensor:
    """(Bt, K*channels, L), or (Bt, L, K*channels), with the orders as an axis of their own."""
    return torch.unflatten(tokens, 2 if channels_last else 1, (orders, -1))


def project(weight: Tensor, tokens: Tensor, channels_last: bool) -> Tensor:
    """The tokens times weight (K, out, in), in their own layout, contiguous."""
    if not channels_last:
        return torch.matmul(weight, tokens)
    batch, length = tokens.shape[:2]
    flat = tokens.flatten(0, 1).transpose(0, 1)
    out = torch.bmm(flat, weight.transpose(1, 2)).transpose(0, 1).contiguous()
    return torch.unflatten(out, 0, (batch, length))


def weight_gradient(grad: Tensor, tokens: Tensor, channels_last: bool) -> Tensor:
    """Gradient of the weight of `project`, (K, out, in)."""
    if not channels_last:
        return torch.matmul(grad, tokens.transpose(2, 3)).sum(0)
    grad, tokens = (each.flatten(0, 1).transpose(0, 1) for each in (grad, tokens))
    return torch.bmm(grad.transpose(1, 2), tokens)
