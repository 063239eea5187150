"""Which backend runs an operator: the one the caller names, else the first that can.

A backend is the module `medplat_kernels.<operator>.<backend>`; it exports
`can_run(*args, raise_error=False)`, which looks at its arguments and computes nothing. Operators
resolve their backend once, in the forward pass; the backward pass runs on the same one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

OPERATORS = (
    "selective_scan",
    "causal_conv1d",
    "mamba_chunk_scan",
    "window_attention",
    "window_cross_attention",
    "neighborhood_attention",
    "scale_attention",
    "similarity_attention",
    "dct2_lowpass",
)
AUTOMATIC = {"cuda": ("triton", "torch"), "cpu": ("numba", "torch")}
ELSEWHERE = ("torch",)
BACKENDS = ("numba", "triton", "torch")

_state = threading.local()
_last: dict[str, str] = {}


class BackendError(RuntimeError):
    """A backend that was asked for by name can't run these arguments; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """Whether a backend can run a call; true or false by itself.

    Attributes:
        ok: It can.
        reason: Why, or why not, in one sentence.
    """

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


def verdict(reason: str | None, raise_error: bool, runs: str = "it can run this call") -> Verdict:
    """What `can_run` returns: `reason` says what stands in the way, None that nothing does.

    Raises:
        BackendError: Something stands in the way and `raise_error` is set.
    """
    if reason and raise_error:
        raise BackendError(reason)
    return Verdict(reason is None, reason or runs)


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Run every operator called inside, in this thread, on `backend`."""
    before = getattr(_state, "asked", None)
    _state.asked = backend
    try:
        yield
    finally:
        _state.asked = before


def asked(backend: str | None) -> str:
    """The backend that a call must run on: its own argument, else the one of `use`, else ""."""
    return backend or getattr(_state, "asked", None) or ""


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off inside an operator's own arithmetic."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@functools.cache
def backends(operator: str, device: str) -> tuple[str, ...]:
    """Backends that `operator` has for a device type, in the order they are tried."""
    names = AUTOMATIC.get(device, ELSEWHERE)
    return tuple(
        name for name in names if importlib.util.find_spec(f"medplat_kernels.{operator}.{name}")
    )


@functools.cache
def module(operator: str, backend: str) -> ModuleType:
    """The module of one backend.

    Raises:
        BackendError: The operator has no such backend.
    """
    name = f"medplat_kernels.{operator}.{backend}"
    if backend not in BACKENDS or importlib.util.find_spec(name) is None:
        raise BackendError(f"{operator} has no backend {backend!r}")
    return importlib.import_module(name)


def choose(operator: str, device: torch.device, args: tuple[Any, ...], named: str = "") -> str:
    """Name of the backend that runs this call.

    Args:
        operator: One of `OPERATORS`.
        device: Where the tensors are.
        args: What the backends' `can_run` look at.
        named: What `asked` answered; empty for the first backend that can.

    Raises:
        BackendError: The named backend can't run the call, or none can.
    """
    if named:
        module(operator, named).can_run(*args, raise_error=True)
        return named
    reasons = []
    for name in backends(operator, device.type):
        answer = module(operator, name).can_run(*args)
        if answer:
            return name
        reasons.append(f"{name}: {answer.reason}")
    raise BackendError(f"no backend can run {operator}: {'; '.join(reasons)}")


def ran(operator: str, backend: str) -> None:
    """Note that `backend` ran `operator`; operators call it, `last_backend` tells it."""
    _last[operator] = backend


def last_backend(operator: str) -> str | None:
    """Backend of the operator's latest call in this process, None before the first."""
    return _last.get(operator)


def explain(device: str) -> dict[str, dict[str, str]]:
    """For each operator, each backend of a device type and why it can or can't run there.

    Uses the operator's `example(device)`: the arguments of a small call, as `can_run` takes them.
    """
    answers: dict[str, dict[str, str]] = {}
    for operator in OPERATORS:
        args = importlib.import_module(f"medplat_kernels.{operator}").example(device)
        answers[operator] = {}
        for name in backends(operator, device):
            answer = module(operator, name).can_run(*args)
            answers[operator][name] = ("yes: " if answer else "no: ") + answer.reason
    return answers
