"""The causal depthwise convolution on GPUs: a tile of channels and steps a program, read in place.

A step is a number in the sequence of one order; `place` says where it lies in memory. Sums over
programs are partial results that the caller adds up in a fixed order.
"""

# ruff: noqa: RUF005  (Triton's tuples have no unpacking)

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from medplat_kernels.causal_conv1d.triton import constants
from medplat_kernels.compile_gate import Specimen
from medplat_kernels.selective_scan.triton_steps import place, sigmoid


@triton.jit
def _tile(channels, first, LAST: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr):
    """Channels and steps of a program, shaped to broadcast to a tile, and which channels exist."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    step = first + tl.arange(0, STEPS)
    if LAST:
        return channel[None, :], step[:, None], (channel < channels)[None, :]
    else:  # noqa: RET505
        return channel[:, None], step[None, :], (channel < channels)[:, None]


@triton.jit
def _at(
    step, channel, length, width, walk,
    LAST: tl.constexpr, REVERSED: tl.constexpr, WALK: tl.constexpr,
):  # fmt: skip
    """Offset in one batch entry that has `width` channels."""
    where = place(step, length, walk, REVERSED, WALK)
    return where * width + channel if LAST else channel * length + where


@triton.jit
def _seen(
    x, states, step, channel, live, length, channels, walk,
    LAST: tl.constexpr, REVERSED: tl.constexpr, WALK: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Input at `step`; before the sequence the initial states, or zeros."""
    at = _at(step, channel, length, channels, walk, LAST, REVERSED, WALK)
    here = live & (step >= 0) & (step < length)
    value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    if states is not None:
        early = live & (step < 0) & (step >= 1 - TAPS)
        value += tl.load(states + channel * (TAPS - 1) + step + TAPS - 1, mask=early, other=0.0)
    return value


@triton.jit
def _bias(bias, channel, live):
    value = tl.zeros(live.shape, tl.float32)
    if bias is not None:
        value = tl.load(bias + channel, mask=live, other=0.0)
    return value


@triton.jit
def causal_conv1d_forward_kernel(
    x, weight, bias, states, out, length, channels, all_channels, walk,
    SILU: tl.constexpr, LAST: tl.constexpr, REVERSED: tl.constexpr, WALK: tl.constexpr,
    TAPS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One order's output; pointers as in the contract, from the order's first channel."""
    batch = tl.program_id(2).to(tl.int64)
    channel, step, live = _tile(channels, tl.program_id(0) * STEPS, LAST, CHANNELS, STEPS)
    x += batch * channels * length
    out += batch * all_channels * length
    if states is not None:
        states += batch * all_channels * (TAPS - 1)
    y = _bias(bias, channel, live)
    for tap in tl.static_range(TAPS):
        w = tl.load(weight + channel * TAPS + tap, mask=live, other=0.0)
        y += w * _seen(
            x, states, step - (TAPS - 1 - tap), channel, live, length, channels, walk,
            LAST, REVERSED, WALK, TAPS,
        )  # fmt: skip
    if SILU:
        y = y * sigmoid(y)
    at = _at(step, channel, length, all_channels, walk, LAST, REVERSED, WALK)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=live & (step < length))


@triton.jit
def causal_conv1d_backward_kernel(
    grad_out, x, weight, bias, states, dx, dweight, dbias, dstates,
    length, channels, all_channels, walk,
    SILU: tl.constexpr, ADD: tl.constexpr, LAST: tl.constexpr, REVERSED: tl.constexpr,
    WALK: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One order's gradients; the steps of the initial states come before step 0.

    ADD: to what dx holds. Partial sums: dweight (Bt, tiles, all_channels, TAPS), dbias (Bt, tiles,
    all_channels).
    """
    batch = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * STEPS - (TAPS - 1)
    channel, step, live = _tile(channels, first, LAST, CHANNELS, STEPS)
    x += batch * channels * length
    dx += batch * channels * length
    grad_out += batch * all_channels * length
    if states is not None:
        states += batch * all_channels * (TAPS - 1)
        dstates += batch * all_channels * (TAPS - 1)
    seen = ()
    for shift in tl.static_range(2 * TAPS - 1):
        seen = seen + (
            _seen(
                x, states, step + shift - (TAPS - 1), channel, live, length, channels, walk,
                LAST, REVERSED, WALK, TAPS,
            ),
        )  # fmt: skip
    weights = ()
    for tap in tl.static_range(TAPS):
        weights = weights + (tl.load(weight + channel * TAPS + tap, mask=live, other=0.0),)
    total = tl.zeros(seen[0].shape, tl.float32)
    own = total
    for ahead in tl.static_range(TAPS):
        later = step + ahead
        at = _at(later, channel, length, all_channels, walk, LAST, REVERSED, WALK)
        here = live & (later >= 0) & (later < length)
        g = tl.load(grad_out + at, mask=here, other=0.0).to(tl.float32)
        if SILU:
            y = _bias(bias, channel, live)
            for tap in tl.static_range(TAPS):
                y += weights[tap] * seen[ahead + tap]
            on = sigmoid(y)
            g = g * on * (1.0 + y * (1.0 - on))
        if ahead == 0:
            own = g
        total += weights[TAPS - 1 - ahead] * g
    time: tl.constexpr = 0 if LAST else 1
    row = (batch * tl.num_programs(0) + tl.program_id(0)) * all_channels
    row += tl.program_id(1) * CHANNELS
    lane = tl.arange(0, CHANNELS)
    exists = tl.program_id(1) * CHANNELS + lane < channels
    for tap in tl.static_range(TAPS):
        partial = tl.sum(own * seen[tap], axis=time)
        tl.store(dweight + (row + lane) * TAPS + tap, partial, mask=exists)
    if dbias is not None:
        tl.store(dbias + row + lane, tl.sum(own, axis=time), mask=exists)
    if dstates is not None:
        early = live & (step < 0)
        tl.store(dstates + channel * (TAPS - 1) + step + TAPS - 1, total, mask=early)
    at = _at(step, channel, length, channels, walk, LAST, REVERSED, WALK)
    here = live & (step >= 0) & (step < length)
    if ADD:
        total += tl.load(dx + at, mask=here, other=0.0).to(tl.float32)
    tl.store(dx + at, total.to(dx.dtype.element_ty), mask=here)


def _specimen(kernel: Any, dtype: str, channels_last: bool, walk: bool) -> Specimen:
    names = ("x", "out", "grad_out", "dx")
    floats = ("weight", "bias", "states", "dweight", "dbias", "dstates")
    kinds = {
        **dict.fromkeys(names, f"*{dtype}"), **dict.fromkeys(floats, "*fp32"),
        "length": "i32", "channels": "i32", "all_channels": "i32", "walk": ("i32",) * 4,
    }  # fmt: skip
    sizes, options = constants(channels_last)
    rules = {"SILU": True, "ADD": False, "LAST": channels_last, "REVERSED": walk, "WALK": walk}
    every = {**rules, "TAPS": 4, **sizes}
    return Specimen(
        name=f"{kernel.__name__} {dtype} {'bld' if channels_last else 'bdl'} walk={walk}",
        kernel=kernel,
        arguments={n: kinds[n] for n in kernel.arg_names if n in kinds},
        constants={n: every[n] for n in kernel.arg_names if n in every},
        unaligned=frozenset({"walk"}),
        options=options,
    )


SPECIMENS = (
    _specimen(causal_conv1d_forward_kernel, "fp32", False, False),
    _specimen(causal_conv1d_forward_kernel, "bf16", True, True),
    _specimen(causal_conv1d_backward_kernel, "fp32", False, False),
    _specimen(causal_conv1d_backward_kernel, "bf16", True, True),
)
