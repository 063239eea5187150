"""What the attention and DCT operators cost, for torch's counter, which does not know them.

    with FlopCounterMode(custom_mapping=medplat_kernels.flop_formulas()) as counter: ...

They are not put into torch's own table when this package is imported: torch's module that holds it
imports Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., int])

_formulas: dict[Any, Callable[..., int]] = {}


def formula(*operators: str) -> Callable[[F], F]:
    """Decorator: the cost of `medplat::<operator>`, from its arguments, shapes for tensors."""

    def keep(function: F) -> F:
        _formulas.update({getattr(torch.ops.medplat, name): function for name in operators})
        return function

    return keep


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """The `custom_mapping` of `torch.utils.flop_counter.FlopCounterMode`."""
    return dict(_formulas)
