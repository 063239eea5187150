"""The public function: checks of its arguments, and the call of the one backend there is."""

from __future__ import annotations

import torch
from torch import Tensor

from medplat_kernels import dispatch

from .torch import chunk_scan


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2 scan by chunks; L need not be a multiple of the chunk.

    Args:
        x: (Bt, L, H, P).
        dt: (Bt, L, H), before bias, softplus and limits.
        A: (H,), real, negative.
        B: (Bt, L, G, N), G dividing H.
        C: As B.
        chunk_size: Steps handled as one matrix product; 32 to 64 is fastest on a CPU.
        D: (H,) or (H, P), weight of the skip from x.
        z: (Bt, L, H, P), gate.
        dt_bias: (H,).
        initial_states: (Bt, H, P, N).
        seq_idx: (Bt, L), integer: a new sequence starts, with a zero state, where it changes.
        dt_softplus: Apply softplus to dt + dt_bias.
        dt_limit: Least and greatest dt.
        return_final_states: Also return the state after the last step; its gradient is exact.

    Returns:
        (Bt, L, H, P) in the dtype of x; with `return_final_states` also (Bt, H, P, N) in float32.

    Raises:
        ValueError: Shapes do not go together.
        BackendError: `use` asks for a backend that this operator lacks.
    """
    asked = dispatch.asked(None)
    if asked not in ("", "torch"):
        raise dispatch.BackendError(f"mamba_chunk_scan has no backend {asked!r}")
    if x.dim() != 4 or B.dim() != 4:
        raise ValueError(
            f"x must be (Bt, L, H, P) and B (Bt, L, G, N), got {tuple(x.shape)}, {tuple(B.shape)}"
        )
    if not x.dtype.is_floating_point or A.is_complex():
        raise ValueError(f"x and A must be real floating-point, got {x.dtype} and {A.dtype}")
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    if chunk_size < 1 or groups < 1 or heads % groups:
        raise ValueError(
            f"chunk_size {chunk_size} must be at least 1 and the {groups} groups of B must divide "
            f"the {heads} heads"
        )
    skip = (heads,) if D is None or D.dim() == 1 else (heads, width)
    for name, tensor, shape in (
        ("dt", dt, (batch, length, heads)),
        ("A", A, (heads,)),
        ("B", B, (batch, length, groups, states)),
        ("C", C, (batch, length, groups, states)),
        ("D", D, skip),
        ("z", z, (batch, length, heads, width)),
        ("dt_bias", dt_bias, (heads,)),
        ("initial_states", initial_states, (batch, heads, width, states)),
        ("seq_idx", seq_idx, (batch, length)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    with dispatch.without_autocast(x.device):
        out, last = chunk_scan(
            x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, dt_softplus,
            dt_limit,
        )  # fmt: skip
    dispatch.ran("mamba_chunk_scan", "torch")
    return (out, last) if return_final_states else out


def example(device: str) -> tuple[Tensor]:
    """What `can_run` takes, of a small call."""
    return (torch.zeros(1, 16, 2, 4, device=device),)
