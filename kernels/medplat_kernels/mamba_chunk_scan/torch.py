"""The Mamba-2 scan as matrix products inside chunks and a loop over the chunks' states.

Only sums of dt A are exponentiated, each added up from the terms it consists of: a difference of
two long cumulative sums would lose the digits of small steps that follow large ones.

Axes: Bt batch, c chunk, Q step in the chunk, G group, E head of a group, H = G * E, P channel of
a head, N state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medplat_kernels.dispatch import Verdict, verdict

# Elements of a block's (c, Bt, H, Q, Q): few enough for a CPU's cache.
BLOCK_ELEMENTS = 1 << 18


def can_run(x: Tensor, recording: bool, *, raise_error: bool = False) -> Verdict:
    """Any device and any real floating-point dtype."""
    return verdict(None, raise_error, "matrix products of torch")


def scan(
    x: Tensor, dt: Tensor, rates: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Output and states; see the contract in the package's docstring."""
    (batch, length, heads, _), wide = x.shape, dt.dtype
    chunk = max(1, min(chunk, length))
    steps = max(1, BLOCK_ELEMENTS // max(1, batch * heads * chunk * chunk)) * chunk
    outputs = [x.new_empty(x[:, :0].shape, dtype=wide)]
    state = state.flatten(0, 1).transpose(1, 2)
    for first in range(0, length, steps):
        part = slice(first, first + steps)
        own = [_chunks(each[:, part].to(wide), chunk) for each in (x, dt, rates, B, C)]
        y, state = _block(state, *own)
        outputs.append(y.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, : length - first])
    last = torch.unflatten(state.transpose(1, 2).clone(), 0, (batch, heads))
    return torch.cat(outputs, 1), last


def _block(
    state: Tensor, x: Tensor, dt: Tensor, rates: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (c, Bt, H, Q, P) and state of some chunks.

    Args:
        state: Before the block, (Bt * H, N, P).
        x: (c, Bt, H, Q, P).
        dt: (c, Bt, H, Q).
        rates: As dt.
        B: (c, Bt, G, Q, N).
        C: (c, Bt, G, Q, N).
    """
    (chunks, batch, heads, steps, width), (groups, _, states) = x.shape, B.shape[2:]
    count = chunks * batch * heads
    x = (x * dt.unsqueeze(-1)).reshape(count, steps, width)
    decay, kept = _decays(rates.reshape(chunks, batch, groups, heads // groups, steps))
    scores = (C @ B.transpose(-1, -2)).tril_().unsqueeze(3)
    y = torch.bmm((scores * decay).reshape(count, steps, steps), x)
    faded = B.unsqueeze(3) * decay[..., -1, :].unsqueeze(-1)
    added = torch.bmm(faded.reshape(count, steps, states).transpose(1, 2), x)
    starts, left = [state], kept[..., -1].reshape(chunks, -1, 1, 1)
    for own, through in zip(added.view(chunks, -1, states, width), left, strict=True):
        starts.append(torch.addcmul(own, through, starts[-1]))
    carried = (C.unsqueeze(3) * kept.unsqueeze(-1)).reshape(count, steps, states)
    y = torch.baddbmm(y, carried, torch.cat(starts[:-1]))
    return y.view(chunks, batch, heads, steps, width), starts[-1]


def _chunks(tokens: Tensor, chunk: int) -> Tensor:
    """(Bt, l, heads, ...) as (c, Bt, heads, Q, ...), with zeros behind the last step."""
    missing = -tokens.shape[1] % chunk
    if missing:
        behind = tokens.new_zeros(tokens.shape[0], missing, *tokens.shape[2:])
        tokens = torch.cat((tokens, behind), 1)
    return torch.unflatten(tokens, 1, (-1, chunk)).transpose(0, 1).transpose(2, 3)


def _decays(rates: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of each step j at each step i >= j, and of the state before the chunk at i.

    Decays are held above the denormal numbers, on which a CPU is slow.

    Args:
        rates: dt A (..., Q).

    Returns:
        (..., Q, Q), row i and column j, without meaning for j > i, and (..., Q).
    """
    least = math.log(torch.finfo(rates.dtype).tiny) + 8
    size = rates.shape[-1]
    ones = torch.ones(size, size, device=rates.device, dtype=rates.dtype)
    # Row i, column k: the rate of step k <= i. Times k > j: the sum of those of j + 1 .. i.
    terms = rates.unsqueeze(-2) * ones.tril()
    between = torch.mm(terms.reshape(-1, size), ones.tril(-1)).view(terms.shape)
    start = rates.cumsum(-1)
    kept = start.clamp(min=least).exp() * (start > least)
    return between.clamp_(min=least).exp_(), kept
