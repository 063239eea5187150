"""The Mamba-2 scan as matrix products inside chunks and a loop over the chunks' states.

Only sums of dt A are exponentiated, each added up from the terms it consists of: a difference of
two long cumulative sums would lose the digits of small steps that follow large ones.

Where no gradient is wanted, the blocks take turns in the same memory: on a CPU, fresh memory costs
more than the arithmetic.

Axes: Bt batch, c chunk, Q step in the chunk, G group, E head of a group, H = G * E, P channel of
a head, N state.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medplat_kernels.dispatch import Verdict, verdict

# Elements of a block's (c, Bt, H, Q, Q): few enough for a CPU's cache.
BLOCK_ELEMENTS = 1 << 18


def can_run(x: Tensor, *, raise_error: bool = False) -> Verdict:
    """Any device and any real floating-point dtype."""
    reason = None if x.dtype.is_floating_point else f"no scan of {x.dtype}"
    return verdict(reason, raise_error)


class _Room:
    """Memory to compute in, the same for all blocks, or none for what autograd is to keep.

    What it gives is for the `out` of a torch function, to which None means fresh memory.
    """

    def __init__(self, like: Tensor, shared: bool) -> None:
        self.like, self.shared = like, shared
        self.taken: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor | None:
        """The memory of a name, which is lost to what had it before."""
        if not self.shared:
            return None
        size = math.prod(shape)
        if name not in self.taken:
            self.taken[name] = self.like.new_empty(size)
        return self.taken[name][:size].view(shape)

    def over(self, used_up: Tensor) -> Tensor | None:
        """The memory of a tensor that is not needed any more."""
        return used_up if self.shared else None


def chunk_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor | None,
    z: Tensor | None, dt_bias: Tensor | None, initial_states: Tensor | None,
    seq_idx: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and final states of `mamba_chunk_scan_combined`."""
    given = (x, dt, A, B, C, initial_states, dt_bias)
    recording = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    shared = not (recording or torch.compiler.is_compiling())
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    dt = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    (batch, length, heads, width), states, A = x.shape, B.shape[3], A.to(wide)
    chunk = max(1, min(chunk_size, length))
    if initial_states is None:
        initial_states = x.new_zeros(batch, heads, width, states)
    state = initial_states.to(wide).flatten(0, 1).transpose(1, 2)
    number = None if seq_idx is None else _sequence_numbers(seq_idx)
    steps = max(1, BLOCK_ELEMENTS // max(1, batch * heads * chunk * chunk)) * chunk
    room, outputs, whole = _Room(A, shared), [], x.new_empty(x.shape, dtype=wide)
    for first in range(0, length, steps):
        part = slice(first, first + steps)
        cut = None if number is None else number[:, max(0, first - 1) : first + steps]
        own_x, own_dt, own_B, own_C = (
            _chunks(each[:, part].to(wide), chunk) for each in (x, dt, B, C)
        )
        same = None if cut is None else _same_sequence(cut, min(steps, length - first), chunk)
        y, state = _block(own_x, own_dt, own_B, own_C, A, state, same, room)
        y = y.permute(1, 0, 3, 2, 4)
        if not shared:
            outputs.append(y.flatten(1, 2)[:, : length - first])
        elif first + steps <= length:
            torch.unflatten(whole[:, part], 1, (-1, chunk)).copy_(y)
        else:
            whole[:, part] = y.flatten(1, 2)[:, : length - first]
    y = torch.cat(outputs, 1) if outputs else whole
    if D is not None:
        y = y + x.to(wide) * (D if D.dim() == 2 else D.unsqueeze(-1)).to(wide)
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(x.dtype), torch.unflatten(state.transpose(1, 2).clone(), 0, (batch, heads))


def _block(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, state: Tensor,
    same: tuple[Tensor, Tensor] | None, room: _Room,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output (c, Bt, H, Q, P) and state of some chunks.

    Args:
        x: (c, Bt, H, Q, P).
        dt: (c, Bt, H, Q).
        B: (c, Bt, G, Q, N).
        C: (c, Bt, G, Q, N).
        A: (H,).
        state: Before the block, (Bt * H, N, P).
        same: What `_same_sequence` says, None for one sequence.
        room: Where to compute.
    """
    (chunks, batch, heads, steps, width), (groups, _, states) = x.shape, B.shape[2:]
    count = chunks * batch * heads
    lead = (chunks, batch, groups, heads // groups)
    x = torch.mul(x, dt.unsqueeze(-1), out=room("x", *x.shape)).reshape(count, steps, width)
    rates = (dt.contiguous() * A.unsqueeze(-1)).view(*lead, steps)
    decay, kept = _decays(rates, room)
    scores = (C @ B.transpose(-1, -2)).tril_().unsqueeze(3)
    inside = torch.mul(scores, decay, out=room("pairs", *lead, steps, steps))
    fade = decay[..., -1, :]
    if same is not None:
        inside = torch.mul(inside, same[0], out=room.over(inside))
        fade, kept = fade * same[0][..., -1, :], kept * same[1]
    y = torch.bmm(inside.reshape(count, steps, steps), x, out=room("y", count, steps, width))
    small = (*lead, steps, states)
    faded = torch.mul(B.unsqueeze(3), fade.unsqueeze(-1), out=room("faded", *small))
    faded = faded.reshape(count, steps, states).transpose(1, 2)
    added = torch.bmm(faded, x, out=room("added", count, states, width))
    starts, left = [state], kept[..., -1].reshape(chunks, -1, 1, 1)
    for own, through in zip(added.view(chunks, -1, states, width), left, strict=True):
        starts.append(torch.addcmul(own, through, starts[-1]))
    before = torch.cat(starts[:-1], out=room.over(added))
    carried = torch.mul(C.unsqueeze(3), kept.unsqueeze(-1), out=room("faded", *small))
    y = torch.baddbmm(y, carried.reshape(count, steps, states), before, out=room.over(y))
    return y.view(chunks, batch, heads, steps, width), starts[-1]


def _chunks(tokens: Tensor, chunk: int) -> Tensor:
    """(Bt, l, heads, ...) as (c, Bt, heads, Q, ...), with zeros behind the last step."""
    missing = -tokens.shape[1] % chunk
    if missing:
        behind = tokens.new_zeros(tokens.shape[0], missing, *tokens.shape[2:])
        tokens = torch.cat((tokens, behind), 1)
    return torch.unflatten(tokens, 1, (-1, chunk)).transpose(0, 1).transpose(2, 3)


def _decays(rates: Tensor, room: _Room) -> tuple[Tensor, Tensor]:
    """What is left of each step j at each step i >= j, and of the state before the chunk at i.

    Decays are held above the denormal numbers, on which a CPU is slow.

    Args:
        rates: dt A (..., Q).
        room: Where to compute.

    Returns:
        (..., Q, Q), row i and column j, without meaning for j > i, and (..., Q).
    """
    least = math.log(torch.finfo(rates.dtype).tiny) + 8
    size = rates.shape[-1]
    ones = torch.ones(size, size, device=rates.device, dtype=rates.dtype)
    # Row i, column k: the rate of step k <= i. Times k > j: the sum of those of j + 1 .. i.
    terms = torch.mul(rates.unsqueeze(-2), ones.tril(), out=room("pairs", *rates.shape, size))
    between = torch.mm(
        terms.reshape(-1, size), ones.tril(-1), out=room("decay", rates.numel(), size)
    ).view(terms.shape)
    start = rates.cumsum(-1)
    kept = start.clamp(min=least).exp() * (start > least)
    return between.clamp_(min=least).exp_(), kept


def _sequence_numbers(seq_idx: Tensor) -> Tensor:
    """Number of changes up to each step: an index that comes back is another sequence."""
    return F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(1), (1, 0))


def _same_sequence(number: Tensor, length: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Pairs of steps in one sequence (c, Bt, 1, 1, Q, Q), steps in that of the chunk before."""
    first, own = number[:, :1], number[:, number.shape[1] - length :]
    missing = -length % chunk
    own = torch.unflatten(torch.cat((own, own[:, -1:].expand(-1, missing)), 1), 1, (-1, chunk))
    before = torch.cat((first, own[:, :-1, -1]), 1).unsqueeze(2)
    same = own.unsqueeze(-1) == own.unsqueeze(-2)
    return same.transpose(0, 1)[:, :, None, None], (own == before).transpose(0, 1)[:, :, None, None]
