"""The selective scan on GPUs: one channel a thread, its states in registers, time a loop.

A program is one warp: WIDTH channels of one group of B and C, one chunk of the sequence, one batch
entry. With several chunks the sequence is split: a first kernel walks every chunk from a zero
state, `selective_scan_chain_kernel` turns the end states into the states that chunks start from
(the decay of a chunk is exp(A sum dt), so it costs one exponential a chunk and state), and the
second walk starts there. The backward pass does the same from the other end.

Sums over programs are partial results in memory that the caller adds up in a fixed order: nothing
is atomic, so results repeat bit by bit. The previous state is kept, never recovered by subtraction.

A launch does STATES states of one order. Arrays are those of the contract in the package's
docstring, seen from the order's first channel and group and from the launch's first state, except:
B and C are float32, (Bt, L, all_groups, ALL_STATES) always; A log2(e) comes as `table` (all_groups,
parts, ALL_STATES, WIDTH), the channels of a group cut in parts of WIDTH and filled up with zeros.
`channels` is the number of channels of an order, `all_channels` that of all orders; so `groups` and
`all_groups`. The array of states that chunks start from has three strides: batch entry, chunk,
channel.
"""

# ruff: noqa: RUF005  (Triton's tuples have no unpacking)

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from medplat_kernels.compile_gate import Specimen

from .ops import CHECKPOINT_STEPS
from .triton import CHAIN, constants
from .triton_steps import (
    LOG2_E,
    add,
    advance,
    decay_of,
    gate_slope,
    gated,
    load_states,
    per_channel,
    places,
    program,
    read,
    save_states,
    sigmoid,
    step_sizes,
    write,
    write_sum,
)


@triton.jit
def selective_scan_forward_local_kernel(
    u, delta, table, B, bias, ends, sums,
    length, walk, u_channels, channels, all_channels, groups, all_groups,
    chunks, chunk_steps,
    SOFTPLUS: tl.constexpr, LAST: tl.constexpr, REVERSED: tl.constexpr, WALK: tl.constexpr,
    ALL_STATES: tl.constexpr, STATES: tl.constexpr, STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """End state of every chunk from a zero state, and the sum of its step sizes.

    Writes ends (Bt, chunks, channels, STATES) and sums (Bt, chunks, channels).
    """
    batch, _, group, origin, live = program(channels, groups, WIDTH)
    chunk = tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    corner = origin if LAST else origin * length
    across = all_groups * ALL_STATES
    u += batch * u_channels * length + corner
    delta += batch * all_channels * length + corner
    B += batch * length * across + group * ALL_STATES
    table += tl.program_id(0) * (ALL_STATES * WIDTH)
    bias = per_channel(bias, origin, live)
    h = load_states(None, lane, live, 1, STATES)
    total = tl.zeros((WIDTH,), tl.float32)
    begin = chunk * chunk_steps
    for first in range(begin, tl.minimum(begin + chunk_steps, length), STEPS):
        at = places(first, length, walk, REVERSED, WALK, STEPS)
        raw = read(delta, lane, live, first, at, length, all_channels, LAST, REVERSED, STEPS)
        x = read(u, lane, live, first, at, length, u_channels, LAST, REVERSED, STEPS)
        q = step_sizes(raw, bias, first, length, SOFTPLUS, STEPS)
        for step in tl.static_range(STEPS):
            total += q[step]
        h = advance(h, q, x, table, B, at, across, live, STATES, STEPS)
    here = (batch * chunks + chunk) * channels + origin
    tl.store(sums + here + lane, total, mask=live)
    save_states(ends + here * STATES, lane * STATES, h, live, 1, STATES)


@triton.jit
def selective_scan_chain_kernel(
    A, ends, sums, edge, starts,
    channels, chunks, edge_batch,
    BACKWARD: tl.constexpr, ALL_STATES: tl.constexpr, STATES: tl.constexpr, STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """What every chunk starts from: the chunk before it in the walk, chained.

    Forward: starts[c + 1] = exp(A sums[c]) starts[c] + ends[c], starts[0] = edge or 0. BACKWARD
    runs from the last chunk to the first. `edge` is (Bt, channels, states), `starts` like `ends`.
    """
    per_batch = (channels * STATES + WIDTH - 1) // WIDTH
    pid = tl.program_id(0)
    batch = (pid // per_batch).to(tl.int64)
    place = (pid % per_batch) * WIDTH + tl.arange(0, WIDTH)
    live = place < channels * STATES
    lane = place // STATES
    n = place % STATES
    decay = tl.load(A + lane * ALL_STATES + n, mask=live, other=0.0) * LOG2_E
    state = tl.zeros((WIDTH,), tl.float32)
    if edge is not None:
        state = tl.load(edge + batch * edge_batch + lane * ALL_STATES + n, mask=live, other=0.0)
    sums += batch * chunks * channels
    ends += batch * chunks * channels * STATES
    starts += batch * chunks * channels * STATES
    for number in range(0, chunks, STEPS):
        total = ()
        local = ()
        for step in tl.static_range(STEPS):
            here = live & (number + step + 0 * lane < chunks)
            chunk = (chunks - 1 - number - step if BACKWARD else number + step) * channels
            total = total + (tl.load(sums + chunk + lane, mask=here, other=0.0),)
            local = local + (tl.load(ends + chunk * STATES + place, mask=here, other=0.0),)
        for step in tl.static_range(STEPS):
            here = live & (number + step + 0 * lane < chunks)
            chunk = (chunks - 1 - number - step if BACKWARD else number + step) * channels
            tl.store(starts + chunk * STATES + place, state, mask=here)
            state = tl.exp2(total[step] * decay) * state + local[step]


@triton.jit
def selective_scan_forward_kernel(
    u, delta, table, B, C, D, z, bias, start, out, checkpoints, last,
    length, walk, u_channels, channels, all_channels, groups, all_groups,
    chunks, chunk_steps, start_batch, start_chunk, start_row,
    SOFTPLUS: tl.constexpr, ADD: tl.constexpr, LAST: tl.constexpr, REVERSED: tl.constexpr,
    WALK: tl.constexpr, ALL_STATES: tl.constexpr, STATES: tl.constexpr,
    STEPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The output, the last state, and the state before every BLOCK steps where wanted.

    ADD: to what `out` holds. z, if there is one, gates the sum. `checkpoints`
    (Bt, blocks, all_channels, states).
    """
    batch, _, group, origin, live = program(channels, groups, WIDTH)
    chunk = tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    corner = origin if LAST else origin * length
    across = all_groups * ALL_STATES
    u += batch * u_channels * length + corner
    delta += batch * all_channels * length + corner
    out += batch * channels * length + corner
    if z is not None:
        z += batch * channels * length + corner
    B += batch * length * across + group * ALL_STATES
    C += batch * length * across + group * ALL_STATES
    table += tl.program_id(0) * (ALL_STATES * WIDTH)
    if start is not None:
        start += batch * start_batch + chunk.to(tl.int64) * start_chunk + origin * start_row
    h = load_states(start, lane * start_row, live, 1, STATES)
    bias = per_channel(bias, origin, live)
    skip = per_channel(D, origin, live)
    decays = load_states(table, lane, live, WIDTH, STATES)
    begin = chunk * chunk_steps
    end = tl.minimum(begin + chunk_steps, length)
    if checkpoints is not None:
        blocks = (length + BLOCK - 1) // BLOCK
        checkpoints += (batch * blocks + begin // BLOCK) * all_channels * ALL_STATES
        checkpoints += origin * ALL_STATES
    for block in range(begin, end, BLOCK):
        if checkpoints is not None:
            save_states(checkpoints, lane * ALL_STATES, h, live, 1, STATES)
            checkpoints += all_channels * ALL_STATES
        for first in range(block, tl.minimum(block + BLOCK, end), STEPS):
            at = places(first, length, walk, REVERSED, WALK, STEPS)
            raw = read(delta, lane, live, first, at, length, all_channels, LAST, REVERSED, STEPS)
            x = read(u, lane, live, first, at, length, u_channels, LAST, REVERSED, STEPS)
            q = step_sizes(raw, bias, first, length, SOFTPLUS, STEPS)
            y = ()
            for step in tl.static_range(STEPS):
                y = y + (skip * x[step],)
            after = ()
            for n in tl.static_range(STATES):
                value = h[n]
                more = ()
                for step in tl.static_range(STEPS):
                    b = tl.load(B + at[step] * across + n)
                    c = tl.load(C + at[step] * across + n)
                    value = tl.exp2(q[step] * decays[n]) * value + q[step] * x[step] * b
                    more = more + (y[step] + value * c,)
                y = more
                after = after + (value,)
            h = after
            if ADD:
                y = add(out, y, lane, live, first, at, length, channels, LAST, REVERSED, STEPS)
            if z is not None:
                gate = read(z, lane, live, first, at, length, channels, LAST, REVERSED, STEPS)
                y = gated(y, gate, STEPS)
            write(out, y, lane, live, first, at, length, channels, LAST, REVERSED, STEPS)
    here = live & (chunk + 0 * lane == chunks - 1)
    last += (batch * all_channels + origin) * ALL_STATES
    save_states(last, lane * ALL_STATES, h, here, 1, STATES)


@triton.jit
def selective_scan_backward_local_kernel(
    grad_out, delta, table, C, z, bias, ends, sums,
    length, walk, channels, all_channels, groups, all_groups, chunks, chunk_steps,
    SOFTPLUS: tl.constexpr, LAST: tl.constexpr, REVERSED: tl.constexpr, WALK: tl.constexpr,
    ALL_STATES: tl.constexpr, STATES: tl.constexpr, STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of every chunk's first state when its last has none, and the sum of step sizes.

    Writes ends (Bt, chunks, channels, STATES) and sums (Bt, chunks, channels).
    """
    batch, _, group, origin, live = program(channels, groups, WIDTH)
    chunk = tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    corner = origin if LAST else origin * length
    across = all_groups * ALL_STATES
    delta += batch * all_channels * length + corner
    grad_out += batch * channels * length + corner
    if z is not None:
        z += batch * channels * length + corner
    C += batch * length * across + group * ALL_STATES
    table += tl.program_id(0) * (ALL_STATES * WIDTH)
    bias = per_channel(bias, origin, live)
    g = load_states(None, lane, live, 1, STATES)
    total = tl.zeros((WIDTH,), tl.float32)
    begin = chunk * chunk_steps
    tiles = (tl.minimum(chunk_steps, length - begin) + STEPS - 1) // STEPS
    for number in range(tiles):
        first = begin + (tiles - 1 - number) * STEPS
        at = places(first, length, walk, REVERSED, WALK, STEPS)
        raw = read(delta, lane, live, first, at, length, all_channels, LAST, REVERSED, STEPS)
        gy = read(grad_out, lane, live, first, at, length, channels, LAST, REVERSED, STEPS)
        q = step_sizes(raw, bias, first, length, SOFTPLUS, STEPS)
        if z is not None:
            gate = read(z, lane, live, first, at, length, channels, LAST, REVERSED, STEPS)
            gy = gated(gy, gate, STEPS)
        for step in tl.static_range(STEPS):
            total += q[step]
        before = ()
        for n in tl.static_range(STATES):
            decay = decay_of(table, n, live)
            value = g[n]
            for step in tl.static_range(STEPS - 1, -1, -1):
                c = tl.load(C + at[step] * across + n)
                value = tl.exp2(q[step] * decay) * (value + gy[step] * c)
            before = before + (value,)
        g = before
    here = (batch * chunks + chunk) * channels + origin
    tl.store(sums + here + lane, total, mask=live)
    save_states(ends + here * STATES, lane * STATES, g, live, 1, STATES)


@triton.jit
def _note_states(
    u, delta, B, table, bias, h, notes, lane, live, block, tiles,
    length, walk, u_channels, all_channels, across,
    SOFTPLUS: tl.constexpr, LAST: tl.constexpr, REVERSED: tl.constexpr, WALK: tl.constexpr,
    STATES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Walk a block from its checkpoint and note the state before every STEPS steps."""
    for tile in range(tiles):
        first = block + tile * STEPS
        save_states(notes + tile * STATES * WIDTH, lane, h, live, WIDTH, STATES)
        at = places(first, length, walk, REVERSED, WALK, STEPS)
        raw = read(delta, lane, live, first, at, length, all_channels, LAST, REVERSED, STEPS)
        x = read(u, lane, live, first, at, length, u_channels, LAST, REVERSED, STEPS)
        q = step_sizes(raw, bias, first, length, SOFTPLUS, STEPS)
        h = advance(h, q, x, table, B, at, across, live, STATES, STEPS)


@triton.jit
def _gradients_of_state(
    B, C, dB, dC, h, q, x, gy, decay, g, sum_a, y, for_q, for_qx,
    first, at, length, across, STEPS: tl.constexpr,
):  # fmt: skip
    """One state over STEPS steps: forward from h, then back.

    Takes and returns g and sum_a, gradients of h and of A, and for every step y, for_q and for_qx:
    the output and the gradients of q (less what goes through q u) and of q u.
    """
    trail = (h,)
    factors = ()
    b = ()
    c = ()
    more = ()
    for step in tl.static_range(STEPS):
        b = b + (tl.load(B + at[step] * across),)
        c = c + (tl.load(C + at[step] * across),)
        factors = factors + (tl.exp2(q[step] * decay),)
        trail = trail + (factors[step] * trail[step] + q[step] * x[step] * b[step],)
        more = more + (y[step] + trail[step + 1] * c[step],)
    more_q = ()
    more_qx = ()
    for step in tl.static_range(STEPS - 1, -1, -1):
        g += gy[step] * c[step]
        write_sum(dB + at[step] * across, g * q[step] * x[step], first + step, length)
        write_sum(dC + at[step] * across, gy[step] * trail[step + 1], first + step, length)
        more_qx = (for_qx[step] + g * b[step],) + more_qx
        g = g * factors[step]
        weight = g * trail[step]
        more_q = (for_q[step] + weight * decay,) + more_q
        sum_a += weight * q[step]
    return g, sum_a, more, more_q, more_qx


@triton.jit
def selective_scan_backward_kernel(
    grad_out, u, delta, table, B, C, D, z, bias, checkpoints, start, notes,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial,
    length, walk, u_channels, channels, all_channels, groups, all_groups, batches,
    chunks, chunk_steps, start_batch, start_chunk, start_row,
    SOFTPLUS: tl.constexpr, ADD: tl.constexpr, LAST: tl.constexpr, REVERSED: tl.constexpr,
    WALK: tl.constexpr, ALL_STATES: tl.constexpr, STATES: tl.constexpr,
    STEPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All gradients. `start` holds those of the states after each chunk.

    ADD: du, ddelta and dz are added to. Partial results: dA (Bt, chunks, all_channels, states), dD
    and dbias (Bt, chunks, all_channels); dB and dC (blocks of WIDTH in a group, Bt, L, all_groups,
    states). `notes` has (BLOCK / STEPS, STATES, WIDTH) for each program: the states before every
    STEPS steps of the block at hand.
    """
    batch, part, group, origin, live = program(channels, groups, WIDTH)
    chunk = tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    corner = origin if LAST else origin * length
    across = all_groups * ALL_STATES
    u += batch * u_channels * length + corner
    du += batch * u_channels * length + corner
    delta += batch * all_channels * length + corner
    ddelta += batch * all_channels * length + corner
    grad_out += batch * channels * length + corner
    if z is not None:
        z += batch * channels * length + corner
        dz += batch * channels * length + corner
    B += batch * length * across + group * ALL_STATES
    C += batch * length * across + group * ALL_STATES
    dB += (part * batches.to(tl.int64) + batch) * length * across + group * ALL_STATES
    dC += (part * batches.to(tl.int64) + batch) * length * across + group * ALL_STATES
    mine = (batch * chunks + chunk) * tl.num_programs(0) + tl.program_id(0)
    notes += mine * (BLOCK // STEPS * STATES * WIDTH)
    table += tl.program_id(0) * (ALL_STATES * WIDTH)
    bias = per_channel(bias, origin, live)
    skip = per_channel(D, origin, live)
    if start is not None:
        start += batch * start_batch + chunk.to(tl.int64) * start_chunk + origin * start_row
    g = load_states(start, lane * start_row, live, 1, STATES)
    sum_a = load_states(None, lane, live, 1, STATES)
    sum_skip = per_channel(None, origin, live)
    sum_bias = per_channel(None, origin, live)
    begin = chunk * chunk_steps
    in_chunk = (tl.minimum(chunk_steps, length - begin) + BLOCK - 1) // BLOCK
    for number in range(in_chunk):
        block = begin + (in_chunk - 1 - number) * BLOCK
        tiles = (tl.minimum(BLOCK, length - block) + STEPS - 1) // STEPS
        blocks = (length + BLOCK - 1) // BLOCK
        saved = checkpoints + (batch * blocks + block // BLOCK) * all_channels * ALL_STATES
        saved += origin * ALL_STATES
        known = load_states(saved, lane * ALL_STATES, live, 1, STATES)
        _note_states(
            u, delta, B, table, bias, known, notes, lane, live, block, tiles,
            length, walk, u_channels, all_channels, across,
            SOFTPLUS, LAST, REVERSED, WALK, STATES, STEPS, WIDTH,
        )  # fmt: skip
        tl.debug_barrier()
        for turn in range(tiles):
            tile = tiles - 1 - turn
            first = block + tile * STEPS
            at = places(first, length, walk, REVERSED, WALK, STEPS)
            raw = read(delta, lane, live, first, at, length, all_channels, LAST, REVERSED, STEPS)
            x = read(u, lane, live, first, at, length, u_channels, LAST, REVERSED, STEPS)
            gy = read(grad_out, lane, live, first, at, length, channels, LAST, REVERSED, STEPS)
            q = step_sizes(raw, bias, first, length, SOFTPLUS, STEPS)
            if z is not None:
                gate = read(z, lane, live, first, at, length, channels, LAST, REVERSED, STEPS)
                ungated = gy
                gy = gated(gy, gate, STEPS)
            y = ()
            for_q = ()
            for_qx = ()
            for step in tl.static_range(STEPS):
                y = y + (skip * x[step],)
                for_q = for_q + (tl.zeros((WIDTH,), tl.float32),)
                for_qx = for_qx + (tl.zeros((WIDTH,), tl.float32),)
                sum_skip += gy[step] * x[step]
            new_g = ()
            new_a = ()
            for n in tl.static_range(STATES):
                h = tl.load(notes + (tile * STATES + n) * WIDTH + lane, mask=live, other=0.0)
                one_g, one_a, y, for_q, for_qx = _gradients_of_state(
                    B + n, C + n, dB + n, dC + n, h, q, x, gy, decay_of(table, n, live), g[n],
                    sum_a[n], y, for_q, for_qx, first, at, length, across, STEPS,
                )  # fmt: skip
                new_g = new_g + (one_g,)
                new_a = new_a + (one_a,)
            g = new_g
            sum_a = new_a
            for_u = ()
            for_delta = ()
            for step in tl.static_range(STEPS):
                slope = for_q[step] * (1.0 / LOG2_E) + for_qx[step] * x[step]
                if SOFTPLUS:
                    slope = slope * sigmoid(raw[step] + bias)
                slope = tl.where(first + step + 0 * lane < length, slope, 0.0)
                sum_bias += slope
                for_delta = for_delta + (slope,)
                for_u = for_u + (for_qx[step] * q[step] + gy[step] * skip,)
            if z is not None:
                for_z = gate_slope(ungated, y, gate, STEPS)
                if ADD:
                    for_z = add(
                        dz, for_z, lane, live, first, at, length, channels, LAST, REVERSED, STEPS
                    )
                write(dz, for_z, lane, live, first, at, length, channels, LAST, REVERSED, STEPS)
            if ADD:
                for_u = add(
                    du, for_u, lane, live, first, at, length, u_channels, LAST, REVERSED, STEPS
                )
                for_delta = add(
                    ddelta, for_delta, lane, live, first, at, length, all_channels, LAST,
                    REVERSED, STEPS,
                )  # fmt: skip
            write(du, for_u, lane, live, first, at, length, u_channels, LAST, REVERSED, STEPS)
            write(
                ddelta, for_delta, lane, live, first, at, length, all_channels, LAST, REVERSED,
                STEPS,
            )  # fmt: skip
        tl.debug_barrier()
    row = (batch * chunks + chunk) * all_channels + origin
    save_states(dA + row * ALL_STATES, lane * ALL_STATES, sum_a, live, 1, STATES)
    if dD is not None:
        tl.store(dD + row + lane, sum_skip, mask=live)
    if dbias is not None:
        tl.store(dbias + row + lane, sum_bias, mask=live)
    if dinitial is not None:
        here = live & (chunk + 0 * lane == 0)
        dinitial += (batch * all_channels + origin) * ALL_STATES
        save_states(dinitial, lane * ALL_STATES, g, here, 1, STATES)


INTEGERS = (
    "length", "u_channels", "channels", "all_channels", "groups", "all_groups", "batches",
    "chunks", "chunk_steps", "start_batch", "start_chunk", "start_row", "edge_batch",
)  # fmt: skip
TOKENS = ("u", "delta", "z", "out", "grad_out", "du", "ddelta", "dz")


def _specimen(
    which: str, dtype: str = "fp32", layout: str = "bdl", walk: bool = False, states: int = 16
) -> Specimen:
    """A kernel as it is launched for one order of all the states, with all optional arguments."""
    kernel, last = globals()[f"selective_scan_{which}_kernel"], layout == "bld"
    kinds: dict[str, Any] = {
        **dict.fromkeys(kernel.arg_names, "*fp32"), **dict.fromkeys(TOKENS, f"*{dtype}"),
        **dict.fromkeys(INTEGERS, "i32"), "walk": ("i32",) * 4,
    }  # fmt: skip
    rules: dict[str, Any] = {
        "SOFTPLUS": True, "ADD": False, "LAST": last, "REVERSED": walk, "WALK": walk,
        "BACKWARD": False, "ALL_STATES": states, "STATES": states, "BLOCK": CHECKPOINT_STEPS,
    }  # fmt: skip
    options = {"num_warps": 4}
    if which == "chain":
        rules |= CHAIN
    else:
        sizes, options = constants(which, states, last)
        rules |= sizes
    counted = which == "forward" and states == 16
    return Specimen(
        name=f"selective_scan {which} {dtype} {layout}{' walk' if walk else ''} N={states}",
        kernel=kernel,
        arguments={n: kinds[n] for n in kernel.arg_names if n not in rules},
        constants={n: rules[n] for n in kernel.arg_names if n in rules},
        unaligned=frozenset({"walk", "groups", "all_groups", "batches", "chunks"}),
        options=options,
        registers=64 if which == "forward" else 128,
        states=rules["STEPS"] * states if counted else 0,
    )


SPECIMENS = (
    _specimen("forward"),
    _specimen("forward", "bf16"),
    _specimen("forward", layout="bld", walk=True),
    _specimen("forward", states=1),
    _specimen("forward_local"),
    _specimen("chain"),
    _specimen("backward_local"),
    _specimen("backward"),
    _specimen("backward", "bf16", "bld", walk=True),
    _specimen("backward", states=1),
)
