"""The selective scan against the programs that people run without CUDA kernels, and itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from harness import Case, Cases, close, gradients
from scan_peers import PEERS
from torch import Tensor
from torch.nn.functional import softplus

from medplat_kernels import selective_scan_fn

REFERENCE, SLOW, MAMBAPY, ASSOCIATIVE = PEERS
TWO_LEVEL = "our torch path"


def inputs(
    batch: int, channels: int, length: int, states: int, device: str, orders: int = 1, **how: Any
) -> list[Tensor]:
    """u, delta, A, B, C, D as a trained block has them: steps of .001 to .1, A = -1..-N."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows = orders * channels
    u = normal(batch, channels, length)
    delta = softplus(normal(batch, rows, length) - 4)
    A = -torch.arange(1.0, states + 1).repeat(rows, 1)
    groups = (batch, orders, states, length) if orders > 1 else (batch, states, length)
    tensors = [u, delta, A, normal(*groups), normal(*groups), normal(rows)]
    dtype = how.get("dtype", torch.float32)
    kinds = [dtype, dtype, torch.float32, dtype, dtype, torch.float32]
    placed = [one.to(device, kind) for one, kind in zip(tensors, kinds, strict=True)]
    return [one.requires_grad_(how.get("grad", False)) for one in placed]


def _forward(run: Callable[..., Any], tensors: list[Tensor]) -> Callable[[], Any]:
    def once() -> Any:
        with torch.no_grad():
            return run(*tensors)

    return once


def _on_torch(*tensors: Tensor) -> Any:
    return selective_scan_fn(*tensors, backend="torch")


def _variants(peers: list[str], device: str) -> dict[str, Callable[..., Any]]:
    known = {**PEERS, TWO_LEVEL: _on_torch}
    if device == "cuda" and importlib.util.find_spec("mamba_ssm"):
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as upstream

        known["mamba_ssm CUDA"] = upstream
        peers = [*peers, "mamba_ssm CUDA"]
    return {"medplat": selective_scan_fn, **{name: known[name] for name in peers}}


def _case(
    shape: tuple[int, int, int, int],
    peers: list[str],
    goals: dict[str, float] | None = None,
    grad: bool = False,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        tensors = inputs(*shape, device, grad=grad, dtype=dtype)
        small = inputs(1, 16, 64, shape[3], device, grad=grad, dtype=dtype)
        what = "forward + backward" if grad else "forward"

        def call(run: Callable[..., Any], given: list[Tensor]) -> Callable[[], Any]:
            return gradients(run, *given) if grad else _forward(run, given)

        return Case(
            title=f"selective scan {shape} {str(dtype).removeprefix('torch.')}, {what}",
            variants={n: call(run, tensors) for n, run in _variants(peers, device).items()},
            same=close(2e-2 if dtype == torch.bfloat16 else 1e-4 if grad else 2e-5),
            goals=goals or {},
            operator="selective_scan",
            warm=call(selective_scan_fn, small),
            **more,
        )

    return make


def _megabytes(batch: int, channels: int, length: int, states: int) -> tuple[float, float]:
    """What section 9 allows: forward, and forward + backward on one thread, in MiB."""
    token, mib = 4 * batch * length, 2**20
    returned = token * channels + token * (2 * channels + 2 * states)
    saved = token * channels * states // 64
    workers = 2 * token * states
    # The drawn gradient of the output is an input that is still to come.
    both = (returned + saved + workers + token * channels) / mib + 10
    return token * channels / mib + 8, both


LONG = (1, 96, 110592, 16)
_FORWARD_MIB, _BOTH_MIB = _megabytes(*LONG)


def _orders(channels: int, grid: tuple[int, ...], names: tuple[str, ...]) -> Callable[[str], Case]:
    """All orders in one call against a call an order with the sequences copied into order."""
    from medplat_kernels.scan_orders import find

    length = int(torch.tensor(grid).prod())

    def make(device: str) -> Case:
        tensors = inputs(1, channels, length, 16, device, orders=len(names))
        u, delta, A, B, C, D = tensors
        walks = [(find(name).reverse, "raster" not in name) for name in names]

        def into(x: Tensor, reverse: bool, across: bool) -> Tensor:
            if across:
                x = x.unflatten(-1, (grid[0], -1)).transpose(-1, -2).flatten(-2)
            return x.flip(-1) if reverse else x

        def back(x: Tensor, reverse: bool, across: bool) -> Tensor:
            x = x.flip(-1) if reverse else x
            return x.unflatten(-1, (-1, grid[0])).transpose(-1, -2).flatten(-2) if across else x

        def separate(*_: Tensor) -> Tensor:
            total = torch.zeros(())
            for at, walk in enumerate(walks):
                rows = slice(at * channels, (at + 1) * channels)
                ordered = [into(x, *walk) for x in (u, delta[:, rows], B[:, at], C[:, at])]
                y = selective_scan_fn(*ordered[:2], A[rows], *ordered[2:], D[rows])
                total = total + back(y, *walk)
            return total

        return Case(
            title=f"selective scan in {len(names)} orders, (1, {channels}, {length}, 16) float32",
            variants={
                "medplat, one call": _forward(
                    lambda *given: selective_scan_fn(*given, order=names, grid=grid), tensors
                ),
                "medplat, a call an order with flips": _forward(separate, tensors),
            },
            same=close(2e-5),
            goals={"medplat, a call an order with flips": 1.5},
            operator="selective_scan",
        )

    return make


CASES: Cases = {
    "forward_4096": _case(
        (1, 96, 4096, 16),
        [REFERENCE, SLOW, MAMBAPY, ASSOCIATIVE, TWO_LEVEL],
        {REFERENCE: 80, SLOW: 70, MAMBAPY: 75, ASSOCIATIVE: 40, TWO_LEVEL: 30},
    ),
    "both_512": _case(
        (1, 96, 512, 16),
        [REFERENCE, MAMBAPY, ASSOCIATIVE, TWO_LEVEL],
        {REFERENCE: 320, MAMBAPY: 27, ASSOCIATIVE: 27},
        grad=True,
    ),
    "both_4096": _case(
        (1, 96, 4096, 16),
        [MAMBAPY, ASSOCIATIVE, TWO_LEVEL],
        {MAMBAPY: 55, ASSOCIATIVE: 38},
        grad=True,
    ),
    "forward_110592": _case(LONG, [], memory={"medplat": _FORWARD_MIB}),
    "both_110592": _case(LONG, [], grad=True, memory={"medplat": _BOTH_MIB}),
    "threads_2": _case((1, 192, 13824, 16), [TWO_LEVEL], threads=2),
    "one_state": _case((2, 384, 3136, 1), [TWO_LEVEL], threads=2),
    "three_orders": _orders(96, (24, 24, 24), ("raster", "raster_reversed", "inter_slice")),
    "cross_scan": _orders(96, (56, 56), ("raster", "column", "raster_reversed", "column_reversed")),
}
# Enough channels for upstream's kernel to fill a GPU; minutes on a CPU.
_WIDE = (8, 2048, 2048, 16)
CUDA_CASES: Cases = {
    f"wide_{name}{'_both' * grad}": _case(_WIDE, [TWO_LEVEL], grad=grad, dtype=dtype)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    for grad in (False, True)
}
