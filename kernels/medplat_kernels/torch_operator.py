"""Python functions as torch operators: what autograd, torch.compile and opcheck see.

`torch.library.custom_op` does the same, but imports torch's compiler at an operator's first call
(2 to 3 s) and adds some 0.1 ms to every call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("medplat", "FRAGMENT")  # type: ignore[no-untyped-call]
F = TypeVar("F", bound=Callable[..., Any])


class TorchOperator:
    """The operator `medplat::<name>`; it changes none of its arguments.

    Args:
        name: Its name in the namespace `medplat`.
        function: What it computes, on any device; its annotations become the schema.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        schema = torch.library.infer_schema(function, mutates_args=())
        library: Any = _LIBRARY  # its methods have no annotations
        library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, function, "CompositeExplicitAutograd")
        self.name = f"medplat::{name}"
        self.overload = getattr(torch.ops.medplat, name).default
        self._recorded: Callable[..., Any] = self.overload

    def __call__(self, *args: Any) -> Any:
        """Call the operator.

        Raises:
            NotImplementedError: A tensor carries a forward-mode derivative (jvp, jacfwd, dual
                tensors), which torch would answer with zeros.
        """
        if torch.compiler.is_compiling():
            return self.overload(*args)
        # No level: nobody is inside of forward mode, and tensors need not be looked at.
        if forward_ad._current_level >= 0:
            unpack: Any = forward_ad.unpack_dual  # it has no annotations
            if any(isinstance(one, Tensor) and unpack(one).tangent is not None for one in args):
                raise NotImplementedError(
                    f"{self.name} has no forward-mode derivative: use backward(), or the reference"
                )
        if torch._C._are_functorch_transforms_active():
            return self.overload(*args)
        return self._recorded(*args)  # what the dispatcher would do, 0.05 ms later

    def register_fake(self, fake: F) -> F:
        """Tell the shapes of the outputs, for tracing."""
        torch.library.register_fake(self.name, fake, lib=_LIBRARY)
        return fake

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]
    ) -> None:
        """Tell the gradient: `backward(ctx, *grads)` and `setup_context(ctx, inputs, output)`.

        As `torch.library.register_autograd`, whose kernel spends 0.2 ms a call on the schema.
        """

        def forward(*args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return self.overload(*args)

        # autograd asks for the signature at every call, and takes the attribute if it is there.
        forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        members = {"forward": forward, "setup_context": setup_context, "backward": backward}
        statics = {name: staticmethod(member) for name, member in members.items()}
        node: Any = type(f"{self.overload.name()}_node", (torch.autograd.Function,), statics)

        def kernel(*args: Any) -> Any:
            recording = torch.is_grad_enabled()
            if recording and any(isinstance(one, Tensor) and one.requires_grad for one in args):
                return node.apply(*args)
            return forward(*args)

        self._recorded = kernel
        library: Any = _LIBRARY
        library.impl(self.overload.name().split("::")[1], kernel, "Autograd")

    def has_no_gradient(self) -> None:
        """A gradient asked of this operator is an error: a backward pass has no second one."""

        def refuse(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError(f"{self.name} can't be differentiated again")

        self.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)


def torch_operator(name: str) -> Callable[[Callable[..., Any]], TorchOperator]:
    """Decorator: the function as the operator `medplat::<name>`."""
    return lambda function: TorchOperator(name, function)
