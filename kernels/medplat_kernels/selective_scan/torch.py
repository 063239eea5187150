"""The selective scan in PyTorch operations: any device, linear in L, a bounded working set.

L is cut in blocks, a block in segments of 64 steps. All segments of a block run in lockstep from
a zero state; their end states are chained; a second lockstep run starts every segment from its
right state. The backward pass does the same in reverse, from the saved states. Decays are only
ever multiplied, so nothing overflows, and h_{t-1} is the state itself, never h_t minus its input.

Inside, a block is (T, S, Bt, G, N, E): step in the segment, segment, batch, group, state, channel
of the group. Tensors that lack an axis have 1 there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.scan_orders import ScanOrder

STEPS = 64
# Elements of a block: on a CPU small enough for its cache, elsewhere few launches.
BLOCK_ELEMENTS = {"cpu": 1 << 20}
BLOCK_ELEMENTS_ELSEWHERE = 1 << 25


def can_run(u: Tensor, A: Tensor, groups: int, *, raise_error: bool = False) -> Verdict:
    """Any device and any real floating-point dtype that the operator takes."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return verdict(None if u.dtype in dtypes else f"no scan of {u.dtype}", raise_error)


@dataclass(frozen=True)
class _Call:
    """The tensors of a call, each with its tokens first, and how one order reads them."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    softplus: bool
    orders: tuple[ScanOrder, ...]
    grid: tuple[int, ...]

    @property
    def width(self) -> int:
        """Channels of one order."""
        return self.A.shape[0] // len(self.orders)

    def rows(self, k: int) -> slice:
        """Channels of order k among all."""
        return slice(k * self.width, (k + 1) * self.width)

    def u_rows(self, k: int) -> slice:
        """Channels of order k in u, which the orders may share."""
        return self.rows(k) if self.u.shape[2] == self.A.shape[0] else slice(0, self.width)

    def groups(self, k: int) -> slice:
        """Groups of order k among all."""
        count = self.B.shape[2] // len(self.orders)
        return slice(k * count, (k + 1) * count)

    def decay_rates(self, k: int) -> Tensor:
        """A of order k, (G, N, E)."""
        count = self.B.shape[2] // len(self.orders)
        return torch.unflatten(self.A[self.rows(k)], 0, (count, -1)).transpose(1, 2).contiguous()

    def blocks(self, k: int) -> list[Tensor]:
        """Raster positions of order k, cut in blocks (T, S)."""
        seen = self.orders[k].positions(self.grid).to(self.u.device)
        whole = seen.numel() // STEPS * STEPS
        states = self.u.shape[1] * self.width * self.A.shape[1]
        room = BLOCK_ELEMENTS.get(self.u.device.type, BLOCK_ELEMENTS_ELSEWHERE)
        segments = max(1, room // max(1, STEPS * states))
        parts = torch.split(seen[:whole], segments * STEPS) if whole else ()
        return [part.view(-1, STEPS).t() for part in parts] + [seen[whole:, None]] * (
            whole < seen.numel()
        )


class _Block:
    """One block of one order, read once: dt, its input and the decays, all in A's dtype."""

    def __init__(self, call: _Call, k: int, seen: Tensor, A: Tensor) -> None:
        groups = A.shape[0]

        def read(tensor: Tensor, rows: slice) -> Tensor:
            return tensor[:, :, rows][seen].to(A.dtype)

        self.seen = seen
        self.u = read(call.u, call.u_rows(k))
        self.raw = read(call.delta, call.rows(k))
        if call.delta_bias is not None:
            self.raw = self.raw + call.delta_bias[call.rows(k)]
        dt = F.softplus(self.raw) if call.softplus else self.raw
        self.dt = torch.unflatten(dt, 3, (groups, 1, -1))
        self.x = self.dt * torch.unflatten(self.u, 3, (groups, 1, -1))
        self.B = read(call.B, call.groups(k)).unsqueeze(-1)
        self.C = read(call.C, call.groups(k)).unsqueeze(-1)
        self.decay = (self.dt * A).exp_()
        self.segment_decay = (self.dt.sum(0) * A).exp_()

    def states_from(self, starts: Tensor) -> Tensor:
        """States before and after each step, (T + 1, S, ...), the first ones given."""
        states = starts.new_empty(self.decay.shape[0] + 1, *starts.shape)
        states[0] = starts
        torch.mul(self.x, self.B, out=states[1:])
        each = states.unbind(0)
        for before, decay, after in zip(each, self.decay.unbind(0), each[1:], strict=False):
            after.addcmul_(decay, before)
        return states

    def decayed(self, states: Tensor) -> Tensor:
        """What is left at each step of the state before it, a_t h_{t-1}; uses up `decay`."""
        return self.decay.mul_(states[:-1])

    def starts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """State at the start of each segment, (S, ...), and the state after the block."""
        ends = torch.zeros_like(self.segment_decay)
        for x, B, decay in zip(self.x, self.B, self.decay, strict=True):
            ends = torch.addcmul(x * B, decay, ends)
        starts = torch.empty_like(ends)
        for s in range(ends.shape[0]):
            starts[s] = state
            state = torch.addcmul(ends[s], self.segment_decay[s], state)
        return starts, state

    def gradient_of_states(self, gy: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of every state, (T, S, ...), and of the state before the block.

        Args:
            gy: Gradient of y, (T, S, Bt, G, 1, E).
            after: Gradient that reaches the state after the block from later steps.
        """
        grads = self.C * gy
        each, decays = grads.unbind(0)[::-1], self.decay.unbind(0)[::-1]
        first = each[0]
        for grad, decay in zip(each[1:], decays, strict=False):
            first = torch.addcmul(grad, decay, first)
        before = self.decay[0] * first
        for s in range(before.shape[0] - 1, -1, -1):
            grads[-1, s] += after
            after = torch.addcmul(before[s], self.segment_decay[s], after)
        for later, decay, grad in zip(each, decays, each[1:], strict=False):
            grad.addcmul_(decay, later)
        return grads, after

    def output(self, states: Tensor, D: Tensor | None) -> Tensor:
        """Output y with the skip, (T, S, Bt, channels)."""
        y = torch.matmul(self.C.transpose(-1, -2), states[1:]).flatten(3)
        return y if D is None else y.addcmul_(D, self.u)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, *, delta_softplus: bool,
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...], channels_last: bool,
    out_dtype: torch.dtype, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, saved states and last state; see the contract in the package's docstring."""
    call = _call(u, delta, A, B, C, D, delta_bias, delta_softplus, orders, grid, channels_last)
    total = _like_output(call, u, channels_last)
    y_tokens = _tokens_first(total, channels_last)
    saved, last = [], []
    for k in range(len(orders)):
        rates, state = call.decay_rates(k), _first_state(call, initial_state, k)
        for seen in call.blocks(k):
            block = _Block(call, k, seen, rates)
            starts, state = block.starts(state)
            saved += [starts.flatten()] * save
            y = block.output(block.states_from(starts), None if D is None else D[call.rows(k)])
            y_tokens[seen] = y_tokens[seen] + y if k else y
        last.append(_to_channels(state))
    out = total if z is None else total.mul_(F.silu(z.to(A.dtype)))
    checkpoints = torch.cat(saved) if saved else A.new_empty(0)
    return out.to(out_dtype), checkpoints, torch.cat(last, 1)


def backward(
    grad_out: Tensor, grad_last_state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor,
    B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None,
    initial_state: Tensor | None, checkpoints: Tensor, *, delta_softplus: bool,
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...], channels_last: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of the nine tensors; see the contract in the package's docstring."""
    call = _call(u, delta, A, B, C, D, delta_bias, delta_softplus, orders, grid, channels_last)
    gy = grad_out.to(A.dtype)
    gy = gy if z is None else gy * F.silu(z.to(A.dtype))
    y = None if z is None else _like_output(call, u, channels_last)
    sums = _Gradients(call, gy, y, channels_last)
    saved = torch.split(checkpoints, _checkpoint_sizes(call))
    for k in range(len(orders)):
        rates, blocks = call.decay_rates(k), call.blocks(k)
        own = saved[k * len(blocks) : (k + 1) * len(blocks)]
        shape = (-1, call.u.shape[1], *rates.shape)
        after = _first_state(call, grad_last_state, k)
        for seen, starts in zip(reversed(blocks), reversed(own), strict=True):
            after = sums.add(k, _Block(call, k, seen, rates), rates, starts.view(shape), after)
        sums.states.append(_to_channels(after))
    dz = None if z is None or y is None else _gate_gradient(grad_out, y, z)
    return sums.result(dz, initial_state is not None)


def _call(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, softplus: bool, orders: tuple[ScanOrder, ...],
    grid: tuple[int, ...], channels_last: bool,
) -> _Call:  # fmt: skip
    u, delta, B, C = (_tokens_first(each, channels_last) for each in (u, delta, B, C))
    return _Call(u, delta, A, B, C, D, delta_bias, softplus, orders, grid)


def _tokens_first(tensor: Tensor, channels_last: bool) -> Tensor:
    """A view (L, Bt, ...) of a tensor of either layout."""
    return tensor.movedim(1 if channels_last else -1, 0)


def _like_output(call: _Call, u: Tensor, channels_last: bool) -> Tensor:
    """An empty (Bt, D, L), or (Bt, L, D), in the dtype of the state."""
    length, batch = call.u.shape[:2]
    shape = (batch, length, call.width) if channels_last else (batch, call.width, length)
    return u.new_empty(shape, dtype=call.A.dtype)


def _first_state(call: _Call, given: Tensor | None, k: int) -> Tensor:
    """States of order k, (Bt, G, N, E), from (Bt, channels, N) or zero."""
    batch, groups = call.u.shape[1], call.groups(k)
    if given is None:
        count = groups.stop - groups.start
        return call.A.new_zeros(batch, count, call.A.shape[1], call.width // count)
    own = torch.unflatten(given[:, call.rows(k)], 1, (groups.stop - groups.start, -1))
    return own.transpose(2, 3)


def _to_channels(state: Tensor) -> Tensor:
    """(Bt, G, N, E) as (Bt, channels, N)."""
    return state.transpose(2, 3).flatten(1, 2)


def _checkpoint_sizes(call: _Call) -> list[int]:
    one = call.u.shape[1] * call.width * call.A.shape[1]
    return [seen.shape[1] * one for k in range(len(call.orders)) for seen in call.blocks(k)]


def _gate_gradient(grad_out: Tensor, y: Tensor, z: Tensor) -> Tensor:
    gate = torch.sigmoid(z.to(y.dtype))
    slope = gate * (1 + z.to(y.dtype) * (1 - gate))
    return (grad_out.to(y.dtype) * y).mul_(slope).to(z.dtype)


class _Gradients:
    """The gradients as they are summed over blocks and orders."""

    def __init__(self, call: _Call, gy: Tensor, y: Tensor | None, channels_last: bool) -> None:
        self.call, self.channels_last = call, channels_last
        self.gy = _tokens_first(gy, channels_last)
        self.y = None if y is None else _tokens_first(y, channels_last)
        self.u = torch.zeros_like(call.u, dtype=call.A.dtype)
        self.delta, self.B, self.C = (torch.empty_like(t) for t in (call.delta, call.B, call.C))
        self.A = torch.zeros_like(call.A)
        self.D = None if call.D is None else torch.zeros_like(call.D)
        self.bias = None if call.delta_bias is None else torch.zeros_like(call.delta_bias)
        self.states: list[Tensor] = []

    def add(self, k: int, block: _Block, A: Tensor, starts: Tensor, after: Tensor) -> Tensor:
        """Add one block of order k; returns the gradient of the state before it.

        Args:
            k: Which order.
            block: The block.
            A: Decay rates (G, N, E).
            starts: State at the start of each segment.
            after: Gradient of the state after the block.
        """
        call, seen, rows, groups = self.call, block.seen, self.call.rows(k), self.call.groups(k)
        D = None if call.D is None else call.D[rows]
        gy = self.gy[seen]
        wide = torch.unflatten(gy, 3, (A.shape[0], 1, -1))
        states = block.states_from(starts)
        if self.y is not None:
            y = block.output(states, D)
            self.y[seen] = self.y[seen] + y if k else y
        grads, before = block.gradient_of_states(wide, after)
        self.C[:, :, groups][seen] = _over_channels(states[1:], wide).to(self.C.dtype)
        self.B[:, :, groups][seen] = _over_channels(grads, block.x).to(self.B.dtype)
        dx = torch.matmul(block.B.transpose(-1, -2), grads).flatten(3)
        through_decay = grads.mul_(block.decayed(states))
        self.A[rows] += (through_decay * block.dt).sum((0, 1, 2)).transpose(1, 2).flatten(0, 1)
        ddt = through_decay.mul_(A).sum(-2).flatten(3).addcmul_(dx, block.u)
        if call.softplus:
            ddt.mul_(torch.sigmoid(block.raw))
        self.delta[:, :, rows][seen] = ddt.to(self.delta.dtype)
        du = dx.mul_(block.dt.flatten(3))
        if D is not None and self.D is not None:
            du.addcmul_(D, gy)
            self.D[rows] += (gy * block.u).sum((0, 1, 2))
        if self.bias is not None:
            self.bias[rows] += ddt.sum((0, 1, 2))
        u_rows = call.u_rows(k)
        self.u[:, :, u_rows][seen] = self.u[:, :, u_rows][seen] + du
        return before

    def result(self, dz: Tensor | None, initial_state: bool) -> tuple[Tensor | None, ...]:
        """The gradients in the layout of their tensors."""
        du, ddelta, dB, dC = (
            each.movedim(0, 1 if self.channels_last else -1).contiguous()
            for each in (self.u.to(self.call.u.dtype), self.delta, self.B, self.C)
        )
        dstate = torch.cat(self.states, 1) if initial_state else None
        return du, ddelta, self.A, dB, dC, self.D, dz, self.bias, dstate


def _over_channels(states: Tensor, channels: Tensor) -> Tensor:
    """Sum over the channels of a group: (..., N, E) and (..., 1, E) to (..., N)."""
    return torch.matmul(states, channels.transpose(-1, -2)).squeeze(-1)
