"""The public function: checks of its arguments, what all backends share, and the call of one."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from medplat_kernels import dispatch

from . import torch as products

NEVER = -1e30  # its exponential is 0, and it can be added up


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
        chunk_size: Steps handled as one matrix product on the torch path; 64 is fastest on a CPU.
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
        BackendError: `use` asks for a backend that this operator lacks, or that can't run this.
    """
    if x.dim() != 4 or B.dim() != 4:
        raise ValueError(
            f"x must be (Bt, L, H, P) and B (Bt, L, G, N), got {tuple(x.shape)}, {tuple(B.shape)}"
        )
    if not x.dtype.is_floating_point or A.is_complex():
        raise ValueError(f"x and A must be real floating-point, got {x.dtype} and {A.dtype}")
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be an integer from 1 up, got {chunk_size}")
    if groups < 1 or heads % groups:
        raise ValueError(f"the {groups} groups of B must divide the {heads} heads of x")
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
    given = (x, dt, A, B, C, D, z, dt_bias, initial_states)
    recording = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    name, runner = _backend(x, recording)
    with dispatch.without_autocast(x.device):
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
        dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
        state = initial_states
        if state is None:
            state = x.new_zeros(batch, heads, width, states)
        out, last = runner.scan(
            x, dt, _rates(dt, A.to(wide), seq_idx), B, C, state.to(wide), chunk_size
        )
        into = None if recording or torch.compiler.is_compiling() else out
        if D is not None:
            weight = (D if D.dim() == 2 else D.unsqueeze(-1)).to(wide)
            out = torch.addcmul(out, x.to(wide), weight, out=into)
        if z is not None:
            out = torch.mul(out, F.silu(z.to(wide)), out=into)
    dispatch.ran("mamba_chunk_scan", name)
    return (out.to(x.dtype), last) if return_final_states else out.to(x.dtype)


def _backend(x: Tensor, recording: bool) -> tuple[str, ModuleType]:
    """Name and module of what runs the call; torch.compile traces into the products of torch."""
    if torch.compiler.is_compiling():
        return "torch", products
    name = dispatch.choose("mamba_chunk_scan", x.device, (x, recording), dispatch.asked(None))
    return name, dispatch.module("mamba_chunk_scan", name)


def _rates(dt: Tensor, A: Tensor, seq_idx: Tensor | None) -> Tensor:
    """A dt, (Bt, L, H); where another sequence begins, so low that nothing is left before it."""
    rates = dt * A
    if seq_idx is None:
        return rates
    changed = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    return rates.masked_fill(changed.unsqueeze(-1), NEVER)


def example(device: str) -> tuple[Tensor, bool]:
    """What `can_run` takes, of a small call."""
    return torch.zeros(1, 16, 2, 4, device=device), False
