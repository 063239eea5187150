"""Small kernels that hand what `medplat_kernels.vectors` emits to Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medplat_kernels import vectors
from medplat_kernels.vector_memory import (
    FLOAT32,
    load_element,
    load_row,
    read_block,
    store_element,
    store_row,
    write_block,
)
from medplat_kernels.vectors import LANES, kernel, lane_sums, load, store


@kernel
def _exp2(source: int, target: int, size: int) -> None:
    for i in range(0, size, LANES):
        store(target, i, vectors.exp2(load(source, i, 1)))


@kernel
def _softplus(source: int, target: int, size: int) -> None:
    for i in range(0, size, LANES):
        store(target, i, vectors.softplus(load(source, i, 1)))


@kernel
def _sigmoid(source: int, target: int, size: int) -> None:
    for i in range(0, size, LANES):
        store(target, i, vectors.sigmoid(load(source, i, 1)))


apply: dict[str, Callable[..., Any]] = {
    "exp2": _exp2, "softplus": _softplus, "sigmoid": _sigmoid,
}  # fmt: skip


@kernel
def read(source: int, index: int, stride: int, lanes: int, kind: int, tile: int) -> None:
    read_block(source, index, stride, lanes, kind, 0, tile, 0, LANES)


@kernel
def write(tile: int, target: int, index: int, stride: int, lanes: int, kind: int) -> None:
    write_block(tile, 0, LANES, target, index, stride, lanes, kind, 0)


@kernel
def convert(source: int, rows: int, single: int, size: int, kind: int) -> None:
    for i in range(0, size, LANES):
        store_row(rows, i, load(source, i, 1), kind)
    for i in range(size):
        store_element(single, i, load_element(source, i, FLOAT32), kind)


@kernel
def widen(source: int, target: int, size: int, kind: int) -> None:
    for i in range(0, size - LANES, LANES):
        store(target, i, load_row(source, i, kind))
    for i in range(size - LANES, size):
        store_element(target, i, load_element(source, i, kind), FLOAT32)


@kernel
def sums(source: int, stride: int, target: int) -> None:
    store(target, 0, lane_sums(source, 0, stride))
