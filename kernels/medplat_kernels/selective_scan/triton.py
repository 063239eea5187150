"""The selective scan on GPUs, by the kernels of `triton_kernels`: what is launched, and how.

One launch does up to 16 states of one order; several add to one another in a fixed order. Importing
this module does not import triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.scan_orders import ScanOrder
from medplat_kernels.triton_device import refusal

from .ops import CHECKPOINT_STEPS

WIDTH = 32  # channels of a program: one warp
STATES = 16  # of a launch, at most
CHAIN = {"STEPS": 8, "WIDTH": 128}
# Warps a multiprocessor: with fewer, the sequence is split; so many are then aimed at.
FEW, ENOUGH = 4, 12
MOST_BATCHES = 65535
LOG2_E = math.log2(math.e)


def can_run(u: Tensor, A: Tensor, groups: int, *, raise_error: bool = False) -> Verdict:
    """float32, bfloat16 and float16 on a GPU of compute capability 8.0, offsets of 31 bits."""
    return verdict(refusal(u) or _too_large(u, A, groups), raise_error)


def _too_large(u: Tensor, A: Tensor, groups: int) -> str | None:
    if u.shape[0] > MOST_BATCHES:
        return f"the triton scan takes {MOST_BATCHES} batch entries, got {u.shape[0]}"
    if max(A.shape[0], groups * A.shape[1], 2) * max(u.shape[1:]) >= 2**31:
        return "the triton scan takes fewer than 2^31 elements a batch entry"
    return None


def constants(
    kernel: str, states: int, channels_last: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """STEPS and WIDTH of a kernel, and the compiler options it is launched with.

    Chosen so that nothing is spilled at 16 states (the compile gate). Fewer states leave registers
    for more steps at a time, which is more memory traffic in flight.

    Args:
        kernel: "forward", "forward_local", "backward" or "backward_local".
        states: Of the launch.
        channels_last: The layout.
    """
    backward = kernel == "backward"
    steps = (4 if backward else 8) if states <= 4 else (1 if backward else 2)
    registers = 64 if kernel == "forward" else 128
    return {"STEPS": steps, "WIDTH": WIDTH}, {"num_warps": 1, "maxnreg": registers}


@dataclass(frozen=True)
class _Part:
    """One launch: an order and up to `STATES` of its states.

    Attributes:
        number: Of the launch, from 0.
        count: Launches in all.
        k: Number of the order.
        first: First state.
        states: Number of states.
        order: The order; `rows` and `columns` its walk.
    """

    number: int
    count: int
    k: int
    first: int
    states: int
    reverse: bool
    rows: int
    columns: int


@dataclass(frozen=True)
class _Sizes:
    """Numbers that all launches of a call share; `channels` and `groups` are those of an order."""

    batches: int
    length: int
    orders: int
    u_channels: int
    channels: int
    groups: int
    states: int
    channels_last: bool
    chunks: int
    chunk_steps: int

    @property
    def parts(self) -> int:
        """Programs that share a group of B and C."""
        return -(-(self.channels // self.groups) // WIDTH)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.parts * self.groups, self.chunks, self.batches

    @property
    def blocks(self) -> int:
        """Checkpoints of a sequence."""
        return -(-self.length // CHECKPOINT_STEPS)

    def numbers(self, part: _Part) -> dict[str, Any]:
        """Arguments that every kernel of the walk takes."""
        return {
            "length": self.length, "walk": walk(part.rows, part.columns), "channels": self.channels,
            "all_channels": self.channels * self.orders, "groups": self.groups,
            "all_groups": self.groups * self.orders, "chunks": self.chunks,
            "chunk_steps": self.chunk_steps,
        }  # fmt: skip

    def rules(self, part: _Part, kernel: str, softplus: bool) -> dict[str, Any]:
        """Constants and compiler options of a launch."""
        steps, options = constants(kernel, part.states, self.channels_last)
        return {
            "SOFTPLUS": softplus, "LAST": self.channels_last, "REVERSED": part.reverse,
            "WALK": part.rows > 1 and part.columns > 1, "ALL_STATES": self.states,
            "STATES": part.states, "enable_fp_fusion": True, **steps, **options,
        }  # fmt: skip

    def parts_of(self, orders: tuple[ScanOrder, ...], grid: tuple[int, ...]) -> Iterator[_Part]:
        """The launches of a call, in order."""
        firsts = range(0, self.states, STATES)
        for k, order in enumerate(orders):
            for number, first in enumerate(firsts):
                yield _Part(
                    k * len(firsts) + number, len(orders) * len(firsts), k, first,
                    min(STATES, self.states - first), order.reverse, *order.walk(grid),
                )  # fmt: skip

    def channels_of(self, part: _Part, tokens: Tensor) -> Tensor:
        """Tokens from the order's first channel; as they are where the orders share them."""
        shared = tokens.shape[2 if self.channels_last else 1] == self.channels
        first = 0 if shared else part.k * self.channels
        return tokens[:, :, first:] if self.channels_last else tokens[:, first:]

    def rows_of(self, part: _Part, parameter: Tensor | None) -> Tensor | None:
        """A (channels, states), D or delta_bias from the order's first channel."""
        if parameter is None:
            return None
        own = parameter[part.k * self.channels :]
        return own[:, part.first :] if own.dim() == 2 else own

    def groups_of(self, part: _Part, tokens: Tensor) -> Tensor:
        """B or C, (.., groups, states), from the order's first group and the first state."""
        return tokens[..., part.k * self.groups :, part.first :]

    def table_of(self, part: _Part, table: Tensor) -> Tensor:
        """The table of decays from the order's first group and the first state."""
        return table[part.k * self.groups :, :, part.first * WIDTH :]

    def states_of(self, part: _Part, states: Tensor | None) -> Tensor | None:
        """States (.., channels, states) from the order's first channel and the first state."""
        if states is None:
            return None
        return states[..., part.k * self.channels :, part.first :]


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, *, delta_softplus: bool,
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...], channels_last: bool,
    out_dtype: torch.dtype, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See the contract in the package's docstring."""
    from . import triton_kernels as kernels

    turn = not channels_last and any(min(each.walk(grid)) > 1 for each in orders)
    if turn:
        u, delta, z = _turned(u), _turned(delta), _turned(z)
    sizes = _sizes(u, A, B, len(orders), channels_last or turn, channels_last)
    B, C = (_states_last(each, channels_last) for each in (B, C))
    table = _table(A, sizes)
    count = len(list(sizes.parts_of(orders, grid)))
    out_shape = (sizes.batches, sizes.length, sizes.channels)
    if not sizes.channels_last:
        out_shape = (sizes.batches, sizes.channels, sizes.length)
    out = u.new_empty(out_shape, dtype=out_dtype if count == 1 else torch.float32)
    every = sizes.channels * sizes.orders
    last = A.new_empty((sizes.batches, every, sizes.states))
    checkpoints = A.new_empty((sizes.batches, sizes.blocks, every, sizes.states) if save else 0)
    with on_device(u.device):
        for part in sizes.parts_of(orders, grid):
            a = sizes.rows_of(part, A)
            shared = {
                "delta": sizes.channels_of(part, delta), "table": sizes.table_of(part, table),
                "B": sizes.groups_of(part, B), "bias": sizes.rows_of(part, delta_bias),
                "u": sizes.channels_of(part, u), "u_channels": sizes.u_channels,
                **sizes.numbers(part),
            }  # fmt: skip
            start = sizes.states_of(part, initial_state)
            rules = sizes.rules(part, "forward_local", delta_softplus)

            def local(ends: Tensor, sums: Tensor, shared: Any = shared, rules: Any = rules) -> None:
                kernels.selective_scan_forward_local_kernel[sizes.grid](
                    **shared, **rules, ends=ends, sums=sums
                )

            begins = _chained(kernels, sizes, part, a, start, local, backward=False)
            kernels.selective_scan_forward_kernel[sizes.grid](
                **shared, **begins, **sizes.rules(part, "forward", delta_softplus),
                C=sizes.groups_of(part, C), D=None if part.first else sizes.rows_of(part, D),
                z=z if part.number == count - 1 else None, out=out,
                checkpoints=sizes.states_of(part, checkpoints) if save else None,
                last=sizes.states_of(part, last), ADD=part.number > 0, BLOCK=CHECKPOINT_STEPS,
            )  # fmt: skip
    out = out.to(out_dtype)
    return (out.transpose(1, 2).contiguous() if turn else out), checkpoints.flatten(), last


def backward(
    grad_out: Tensor, grad_last_state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor,
    B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None,
    initial_state: Tensor | None, checkpoints: Tensor, *, delta_softplus: bool,
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...], channels_last: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See the contract in the package's docstring."""
    from . import triton_kernels as kernels

    turn = not channels_last and any(min(each.walk(grid)) > 1 for each in orders)
    if turn:
        grad_out, u, delta, z = _turned(grad_out), _turned(u), _turned(delta), _turned(z)
    sizes = _sizes(u, A, B, len(orders), channels_last or turn, channels_last)
    B, C = (_states_last(each, channels_last) for each in (B, C))
    table = _table(A, sizes)
    parts = list(sizes.parts_of(orders, grid))
    every = sizes.channels * sizes.orders
    new = torch.empty_like if len(parts) == 1 else _zeros
    du, ddelta, dz = new(u), new(delta), None if z is None else new(z)
    dA = A.new_empty((sizes.batches, sizes.chunks, every, sizes.states))
    dB, dC = (A.new_empty((sizes.parts, *B.shape)) for _ in "BC")
    dD = A.new_empty((sizes.batches, sizes.chunks, every))
    firsts = -(-sizes.states // STATES)
    dbias = A.new_empty((firsts, sizes.batches, sizes.chunks, every))
    dinitial = None if initial_state is None else torch.empty_like(initial_state)
    with on_device(u.device):
        for part in parts:
            a = sizes.rows_of(part, A)
            shared = {
                "delta": sizes.channels_of(part, delta), "table": sizes.table_of(part, table),
                "grad_out": grad_out, "z": z,
                "C": sizes.groups_of(part, C), "bias": sizes.rows_of(part, delta_bias),
                **sizes.numbers(part),
            }  # fmt: skip
            edge = sizes.states_of(part, grad_last_state)
            rules = sizes.rules(part, "backward_local", delta_softplus)

            def local(ends: Tensor, sums: Tensor, shared: Any = shared, rules: Any = rules) -> None:
                kernels.selective_scan_backward_local_kernel[sizes.grid](
                    **shared, **rules, ends=ends, sums=sums
                )

            ends = _chained(kernels, sizes, part, a, edge, local, backward=True)
            rules = sizes.rules(part, "backward", delta_softplus)
            tiles = CHECKPOINT_STEPS // rules["STEPS"]
            notes = A.new_empty((math.prod(sizes.grid), tiles, part.states, WIDTH))
            own = part.k * sizes.channels
            kernels.selective_scan_backward_kernel[sizes.grid](
                **shared, **ends, **rules, u=sizes.channels_of(part, u),
                u_channels=sizes.u_channels, B=sizes.groups_of(part, B),
                D=None if part.first else sizes.rows_of(part, D),
                checkpoints=sizes.states_of(
                    part, checkpoints.view(sizes.batches, sizes.blocks, every, sizes.states)
                ),
                notes=notes, du=sizes.channels_of(part, du),
                ddelta=sizes.channels_of(part, ddelta), dz=dz,
                dA=sizes.states_of(part, dA), dB=sizes.groups_of(part, dB),
                dC=sizes.groups_of(part, dC), dD=None if part.first else dD[:, :, own:],
                dbias=dbias[part.first // STATES, :, :, own:],
                dinitial=sizes.states_of(part, dinitial), batches=sizes.batches,
                ADD=len(parts) > 1, BLOCK=CHECKPOINT_STEPS,
            )  # fmt: skip
    du, ddelta = du.to(u.dtype), ddelta.to(u.dtype)
    dz = None if dz is None else dz.to(u.dtype)
    if turn:
        du, ddelta, dz = _turned(du), _turned(ddelta), _turned(dz)
    dB, dC = (each.sum(0).to(u.dtype) for each in (dB, dC))
    if not channels_last:
        dB, dC = (each.permute(0, 2, 3, 1).contiguous() for each in (dB, dC))
    return (
        du, ddelta, dA.sum((0, 1)), dB, dC, None if D is None else dD.sum((0, 1)), dz,
        None if delta_bias is None else dbias.sum((0, 1, 2)), dinitial,
    )  # fmt: skip


def _sizes(
    u: Tensor, A: Tensor, B: Tensor, orders: int, channels_last: bool, states_last: bool
) -> _Sizes:
    """Sizes of a call and how its sequences are split; B as the caller gave it."""
    length, u_channels = (u.shape[1], u.shape[2]) if channels_last else (u.shape[2], u.shape[1])
    channels, groups = A.shape[0] // orders, B.shape[2 if states_last else 1] // orders
    programs = u.shape[0] * groups * -(-(channels // groups) // WIDTH)
    chunks, chunk_steps = split(programs, length, multiprocessors(u.device))
    return _Sizes(
        u.shape[0], length, orders, u_channels, channels, groups, A.shape[1], channels_last,
        chunks, chunk_steps,
    )  # fmt: skip


def split(programs: int, length: int, processors: int) -> tuple[int, int]:
    """Chunks of a sequence and steps of a chunk, for so many programs without a split."""
    if programs >= FEW * processors or length <= CHECKPOINT_STEPS:
        return 1, length
    chunks = -(-ENOUGH * processors // programs)
    blocks = -(-length // CHECKPOINT_STEPS)
    steps = -(-blocks // chunks) * CHECKPOINT_STEPS
    return -(-length // steps), steps


def walk(rows: int, columns: int) -> tuple[int, int, int, int]:
    """An order's walk and how kernels divide by `rows`.

    t // rows = (t * multiplier) >> (30 + shift) for t < 2^30: Granlund and Montgomery, Division by
    invariant integers using multiplication, PLDI 1994, theorem 4.2.
    """
    shift = (rows - 1).bit_length()
    return rows, columns, -(-(1 << (30 + shift)) // rows), shift


def multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 in the interpreter."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _chained(
    kernels: Any, sizes: _Sizes, part: _Part, A: Tensor | None, edge: Tensor | None,
    local: Callable[[Tensor, Tensor], None], *, backward: bool,
) -> Mapping[str, Tensor | int | None]:  # fmt: skip
    """The states that chunks start from, as arguments of a kernel.

    With one chunk they are those of `edge`. Else `local` fills in the end states and sums of all
    chunks from zero, which are then chained from `edge`.
    """
    every, states = sizes.channels * sizes.orders, sizes.states
    if sizes.chunks == 1:
        return {
            "start": edge, "start_batch": every * states, "start_chunk": 0, "start_row": states
        }  # fmt: skip
    assert A is not None
    ends = A.new_empty((sizes.batches, sizes.chunks, sizes.channels, part.states))
    starts, sums = torch.empty_like(ends), A.new_empty(ends.shape[:3])
    local(ends, sums)
    programs = sizes.batches * -(-sizes.channels * part.states // CHAIN["WIDTH"])
    kernels.selective_scan_chain_kernel[(programs,)](
        A=A, ends=ends, sums=sums, edge=edge, starts=starts, channels=sizes.channels,
        chunks=sizes.chunks, edge_batch=every * states, BACKWARD=backward, ALL_STATES=states,
        STATES=part.states, enable_fp_fusion=True, **CHAIN,
    )  # fmt: skip
    return {
        "start": starts, "start_batch": starts.stride(0), "start_chunk": starts.stride(1),
        "start_row": part.states,
    }  # fmt: skip


def _table(A: Tensor, sizes: _Sizes) -> Tensor:
    """A log2(e) as the kernels read it, (groups of all orders, parts, states * WIDTH)."""
    groups, size = sizes.groups * sizes.orders, sizes.channels // sizes.groups
    rows = F.pad(A.view(groups, size, -1), (0, 0, 0, sizes.parts * WIDTH - size))
    cut = rows.view(groups, sizes.parts, WIDTH, -1).transpose(2, 3)
    return (cut * LOG2_E).reshape(groups, sizes.parts, -1)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Launches go to the current device: make it the one of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.float32)


@overload
def _turned(tokens: Tensor) -> Tensor: ...
@overload
def _turned(tokens: Tensor | None) -> Tensor | None: ...
def _turned(tokens: Tensor | None) -> Tensor | None:
    """The other layout."""
    return None if tokens is None else tokens.transpose(1, 2).contiguous()


def _states_last(tokens: Tensor, already: bool) -> Tensor:
    """B or C as float32 (Bt, L, G, N), from (Bt, G, N, L) unless `already` so."""
    turned = tokens if already else tokens.permute(0, 3, 1, 2)
    if turned.dtype == torch.float32:
        return turned.contiguous()
    return turned.new_empty(turned.shape, dtype=torch.float32).copy_(turned)
