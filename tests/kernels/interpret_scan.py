"""The Triton scan and convolution in the interpreter, against their float64 references.

Run as a program, with TRITON_INTERPRET=1, which is looked at when triton is imported; arguments are
names of cases, none for all. A line a case: name, and what is over its gate or "within". Fresh
memory holds NaN. Sequences are split as on a GPU with 50 multiprocessors where the name says so, at
blocks of 8 steps instead of 64, which is what makes the interpreter's sizes small.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from scan_gates import over, twin, worst
from scan_inputs import Case, typed
from torch import Tensor

from medplat_kernels import causal_conv1d_fn, last_backend, selective_scan_fn
from medplat_kernels.causal_conv1d.reference import causal_conv1d_reference
from medplat_kernels.selective_scan import triton as scan_triton
from medplat_kernels.selective_scan.reference import selective_scan_reference

BARE = ("D", "z", "delta_bias", "initial_state")
SMALL: dict[str, Any] = {"batch": 1, "width": 3, "length": 20, "states": 2}
SCANS = {
    "plain": Case(**SMALL),
    "split": Case(**SMALL),
    "channels last": Case(**SMALL, layout="bld"),
    "two groups, one state": Case(batch=2, width=4, length=11, states=1, groups=2),
    "constant groups": Case(batch=1, width=3, length=9, states=2, groups=3),
    "reversed, split": Case(**SMALL, order="raster_reversed"),
    "column, split": Case(**{**SMALL, "length": 18}, order="column", grid=(3, 6), layout="bld"),
    "cross": Case(batch=1, width=2, length=12, states=1, order="cross2d", grid=(3, 4)),
    "three orders, split": Case(
        batch=1, width=2, length=18, states=1, order="tri3d", grid=(3, 2, 3), own_u=True,
        layout="bld",
    ),
    "18 states": Case(batch=1, width=2, length=3, states=18),
    "bare": Case(**SMALL, softplus=False, without=BARE),
    "strong decay, split": Case(**SMALL, dt=21.0, decay=2),
    "steps of 25": Case(**SMALL, dt=25.0, decay=0.02),
    "one step, 33 channels": Case(batch=1, width=33, length=1, states=1),
    "bfloat16": Case(**{**SMALL, "length": 12}),
    "float16": Case(**{**SMALL, "length": 12}),
}  # fmt: skip
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "convolution": {},
    "convolution, channels last": {"layout": "bld", "order": "column", "grid": (4, 5)},
    "convolution in orders": {"order": "tri3d", "grid": (5, 2, 2), "activation": "silu"},
}  # fmt: skip


def results(names: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    for name, case in SCANS.items():
        if name not in names:
            continue
        split = (50, 8) if name.endswith("split") else (1, 64)
        scan_triton.multiprocessors = lambda _, processors=split[0]: processors  # type: ignore
        scan_triton.CHECKPOINT_STEPS = split[1]
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
        inputs = typed(case.inputs(), dtype)
        exact = twin(inputs)
        found = selective_scan_fn(
            **inputs, **case.keywords, return_last_state=True, backend="triton"
        )
        assert last_backend("selective_scan") == "triton"
        expected = selective_scan_reference(**exact, **case.keywords)
        yield name, over(worst(found, inputs, expected, exact), dtype)
    for name, how in CONVOLUTIONS.items():
        if name not in names:
            continue
        inputs = convolution_inputs(how)
        exact = twin(inputs)
        out = causal_conv1d_fn(**inputs, **how, backend="triton")
        assert last_backend("causal_conv1d") == "triton"
        expected = causal_conv1d_reference(**exact, **how)
        yield name, over(worst([out], inputs, [expected], exact), torch.float32)


def convolution_inputs(how: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    channels = 9 if how.get("order") == "tri3d" else 3
    shape = (2, 20, 3) if how.get("layout") == "bld" else (2, 3, 20)
    shapes = {
        "x": shape, "weight": (channels, 4), "bias": (channels,),
        "initial_states": (2, channels, 3),
    }  # fmt: skip
    given = {name: torch.randn(each, generator=generator) for name, each in shapes.items()}
    if "order" in how:
        del given["initial_states"]
    return {name: tensor.requires_grad_() for name, tensor in given.items()}


def patch_once() -> None:
    """A launch patches triton.language; our functions that it calls need not do so again."""
    from triton.runtime.interpreter import InterpretedFunction

    patching = InterpretedFunction.__call__

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours = self.fn.__module__.startswith("medplat_kernels")
        return self.rewrite()(*args, **kwargs) if ours else patching(self, *args, **kwargs)

    InterpretedFunction.__call__ = called


if __name__ == "__main__":
    patch_once()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    assert torch.isnan(torch.empty(3)).all()
    for name, broken in results(sys.argv[1:] or [*SCANS, *CONVOLUTIONS]):
        sys.stdout.write(f"{name}\t{broken or 'within'}\n")
        sys.stdout.flush()
