"""What the kernel tests share: error norms, the gates of each dtype, NaN-filled memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from medplat_kernels import dispatch

# Greatest ||error|| / ||reference||: forward, gradients.
GATES = {
    torch.float32: (2e-6, 1e-5),
    torch.bfloat16: (1e-2, 2e-2),
    torch.float16: (2e-3, 5e-3),
    torch.float64: (1e-12, 1e-8),
}


def cpu_backends(operator: str) -> tuple[str, ...]:
    return dispatch.backends(operator, "cpu")


def error(found: Tensor, expected: Tensor) -> float:
    """Relative norm of the difference; a NaN anywhere counts as infinite."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    if not torch.isfinite(found).all():
        return float("inf")
    norm = expected.norm()
    return float((found - expected).norm() / norm) if norm else float(found.norm())


@contextmanager
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty and its kin, and numpy.empty, hand out NaN, as freed memory might hold."""
    real = np.empty

    def poisoned(*args: object, **kwargs: object) -> np.ndarray:
        array = real(*args, **kwargs)  # type: ignore[call-overload]
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", poisoned)
        try:
            assert torch.isnan(torch.empty(3)).all()
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """A random gradient for each output, in its dtype, the same ones at every call."""
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype)
        for each in outputs
    ]


def worst(
    found: Sequence[Tensor],
    inputs: Mapping[str, Tensor],
    expected: Sequence[Tensor],
    exact: Mapping[str, Tensor],
) -> dict[str, float]:
    """Relative errors of outputs and of the gradient of each input, against a float64 twin."""
    given = cotangents(found)
    grads = torch.autograd.grad(found, list(inputs.values()), given)
    truth = torch.autograd.grad(expected, list(exact.values()), [each.double() for each in given])
    measured = {
        f"output {number}": error(each, want)
        for number, (each, want) in enumerate(zip(found, expected, strict=True))
    }
    for (name, tensor), grad, want in zip(inputs.items(), grads, truth, strict=True):
        assert grad.dtype == tensor.dtype
        measured[f"gradient of {name}"] = error(grad, want)
    return measured


def over(measured: Mapping[str, float], dtype: torch.dtype) -> dict[str, float]:
    """The errors that are over the gates of a dtype."""
    forward, backward = GATES[dtype]
    return {
        name: value
        for name, value in measured.items()
        if not value <= (backward if name.startswith("gradient") else forward)
    }


def twin(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float64 leaves that hold the very numbers of the inputs."""
    return {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
