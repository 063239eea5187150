"""Other ways to compute the selective scan, as their users run them.

Each takes (u, delta, A, B, C, D) with u, delta (Bt, D, L), A (D, N), B, C (Bt, N, L), softplus
already applied, and returns (Bt, D, L). The first two are restated: the same torch operations in
the same order as the programs named, in our words.
"""

from __future__ import annotations

import torch
from mambapy.pscan import pscan
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan


def mamba_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mamba_ssm's `selective_scan_ref`: everything of size (Bt, D, L, N), then a loop over L."""
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state = A.new_zeros((u.shape[0], *A.shape))
    outputs = []
    for step in range(u.shape[2]):
        state = decay[:, :, step] * state + inputs[:, :, step]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, step]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def transformers_slow(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """What transformers' Mamba runs without CUDA kernels: a product of matrices a step."""
    B, C = B.mT, C.mT
    decay = torch.exp(A[None, :, None] * delta[..., None])
    inputs = delta[..., None] * B[:, None] * u[..., None]
    state = A.new_zeros((u.shape[0], *A.shape))
    outputs = []
    for step in range(u.shape[2]):
        state = decay[:, :, step] * state + inputs[:, :, step]
        outputs.append(torch.matmul(state, C[:, step, :, None])[..., 0])
    return torch.stack(outputs, dim=-1) + u * D[None, :, None]


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The scan of mambapy, the package itself, with the operations its block puts around."""
    u, delta, B, C = u.mT, delta.mT, B.mT, C.mT
    decay = torch.exp(delta[..., None] * A)
    states = pscan(decay, delta[..., None] * B[:, :, None] * u[..., None])
    return ((states @ C[..., None]).squeeze(3) + D * u).mT


def torch_associative(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """The associative_scan of torch over pairs (decay, input)."""
    decay = torch.exp(delta[..., None] * A[:, None])
    inputs = (delta * u)[..., None] * B.mT[:, None]

    def join(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    states = associative_scan(join, (decay, inputs), dim=2, combine_mode="generic")[1]
    return torch.einsum("bdln,bnl->bdl", states, C) + D[:, None] * u


PEERS = {
    "mamba_ssm reference": mamba_reference,
    "transformers slow path": transformers_slow,
    "mambapy": mambapy_scan,
    "associative_scan": torch_associative,
}
