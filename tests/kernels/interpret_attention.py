"""The Triton attention kernels in the interpreter, against the operators' references in float64.

Run as a program with TRITON_INTERPRET=1, which must be set before triton is imported; a line a
case: name and worst relative error. Fresh memory is filled with NaN first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medplat_kernels import (
    neighborhood_attention,
    scale_attention,
    similarity_attention,
    window_attention,
    window_cross_attention,
)
from medplat_kernels.neighborhood_attention.reference import neighborhood_attention_reference
from medplat_kernels.scale_attention.reference import scale_attention_reference
from medplat_kernels.similarity_attention.reference import similarity_attention_reference
from medplat_kernels.window_attention.reference import window_attention_reference


def multiply_bfloat16_as_numbers() -> None:
    """Triton 3.9's interpreter keeps bfloat16 as its bits and multiplies those: convert first."""
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder

    product, convert = InterpreterBuilder.create_dot, InterpreterBuilder.create_fp_ext

    def create_dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (convert(builder, x, float32) if x.dtype == bfloat16 else x for x in (a, b))
        return product(builder, a, b, *rest)

    InterpreterBuilder.create_dot = create_dot


def window_reference(
    q: Tensor, k: Tensor, v: Tensor, window: Any, shift: Any, *rest: Any
) -> Tensor:
    return window_attention_reference(q, k, v, window, window, shift, *rest)


def cross_reference(q: Tensor, k: Tensor, v: Tensor, window_q: Any, window_k: Any) -> Tensor:
    return window_attention_reference(q, k, v, window_q, window_k, (0,) * len(window_q))


WINDOW = (window_attention, window_reference)
CROSS = (window_cross_attention, cross_reference)
NEAR = (neighborhood_attention, neighborhood_attention_reference)
SCALE = (scale_attention, scale_attention_reference)


def results(
    run: Callable[..., Any], tensors: list[Tensor], *rest: Any, **named: Any
) -> list[Tensor]:
    """Output and gradients for a gradient that is the same in every run."""
    leaves = [one.detach().clone().requires_grad_() for one in tensors]
    out = run(*leaves, *rest, **named)
    outs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator("cpu").manual_seed(1)
    grads = [torch.randn(one.shape, generator=generator, device="cpu").to(one) for one in outs]
    found = torch.autograd.grad(outs, leaves, grads, allow_unused=True)
    return [one.detach() for one in (*outs, *found)]


def worst(
    pair: tuple[Callable[..., Any], Callable[..., Any]],
    tensors: list[Tensor],
    *rest: Any,
    **named: Any,
) -> float:
    """Largest relative error of output and gradients."""
    operator, reference = pair
    got = results(operator, tensors, *rest, backend="triton", **named)
    wanted = results(reference, [one.double() for one in tensors], *rest, **named)
    errors = [
        (a.double() - b).norm() / b.norm().clamp_min(1e-12)
        for a, b in zip(got, wanted, strict=True)
    ]
    return float(max(errors))


def repeats(operator: Callable[..., Any], tensors: list[Tensor], *rest: Any) -> float:
    """0 where two runs agree in every bit, else 1."""
    runs = (results(operator, tensors, *rest, backend="triton") for _ in range(2))
    return 1.0 - all(map(torch.equal, *runs))


def normal(*shape: int) -> Tensor:
    """A map in channels-last memory: heads beside the width, as a projection leaves it."""
    return torch.randn(shape[0], *shape[2:-1], shape[1], shape[-1]).movedim(-2, 1)


def cases() -> dict[str, Callable[[], float]]:
    """Name to the run of a case; odd sizes, ragged edges, a head that is no power of two."""

    def maps(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [normal(*shape).to(dtype) for _ in range(3)]

    def cross(*, keys: tuple[int, ...], queries: tuple[int, ...]) -> list[Tensor]:
        return [normal(1, 2, *queries, 6), normal(1, 2, *keys, 6), normal(1, 2, *keys, 6)]

    def biased(tensors: list[Tensor], window: tuple[int, ...], *rest: Any) -> float:
        tokens = torch.Size(window).numel()
        bias = torch.randn(tensors[0].shape[1], tokens, tokens)

        def with_bias(run: Callable[..., Any]) -> Callable[..., Any]:
            return lambda q, k, v, b, **named: run(q, k, v, window, *rest, b, **named)

        pair = (with_bias(WINDOW[0]), with_bias(WINDOW[1]))
        return worst(pair, [*tensors, bias])

    texts, tokens = torch.randn(2, 17, 20), torch.randn(2, 37, 20)
    tokens[0, 3] = 0.0
    mask = torch.rand(2, 37) > 0.3
    heat = torch.tensor(0.2)

    def similar(t: Tensor, v: Tensor, temperature: Tensor, **named: Any) -> Any:
        return similarity_attention(t, v, temperature, **named)

    pair = (similar, similarity_attention_reference)
    return {
        "shifted windows, ragged, bias": lambda: biased(maps(2, 1, 5, 4, 6), (4, 3), (1, 2)),
        "windows in space": lambda: worst(WINDOW, maps(1, 1, 2, 3, 4, 5), (2, 2, 3), (1, 0, 1)),
        "windows longer than a block": lambda: worst(WINDOW, maps(1, 1, 5, 7, 4), (5, 7), (0, 3)),
        "cross windows": lambda: worst(CROSS, cross(queries=(7, 8), keys=(4, 4)), (4, 4), (2, 2)),
        "neighborhoods": lambda: worst(NEAR, maps(1, 1, 9, 7, 5), (3, 5), (1, 1)),
        "dilated": lambda: worst(NEAR, maps(1, 1, 5, 9, 4), (3, 2), (1, 2)),
        "neighborhoods in space": lambda: worst(NEAR, maps(1, 1, 3, 5, 4, 4), (3, 3, 2), (1, 1, 2)),
        "sequences": lambda: worst(SCALE, maps(2, 2, 19, 12)),
        "one query": lambda: worst(SCALE, maps(2, 2, 18, 12), readout=-1),
        "two runs": lambda: repeats(scale_attention, maps(2, 1, 18, 12)),
        "two runs of similarity": lambda: repeats(similar, [texts, tokens, heat]),
        "one token": lambda: worst(WINDOW, maps(1, 1, 1, 1, 3), (1, 1), (0, 0)),
        "half precision, over 500": lambda: (
            worst(SCALE, maps(2, 1, 17, 8, dtype=torch.float16)) / 500
        ),
        "bfloat16, over 2000": lambda: worst(SCALE, maps(2, 1, 17, 8, dtype=torch.bfloat16)) / 2000,
        "neighborhoods, bfloat16, over 2000": lambda: (
            worst(NEAR, maps(1, 1, 5, 6, 4, dtype=torch.bfloat16), (3, 3), (1, 1)) / 2000
        ),
        "similarity": lambda: worst(pair, [texts, tokens, heat]),
        "similarity, masked, one set of texts": lambda: worst(
            pair, [texts[:1], tokens, heat], mask=mask
        ),
    }


def main() -> None:
    """Write a line a case; an argument names another device, where nothing is interpreted."""
    if not sys.argv[1:]:
        multiply_bfloat16_as_numbers()
    torch.set_default_device(sys.argv[1] if sys.argv[1:] else "cpu")
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for name, run in cases().items():
        sys.stdout.write(f"{name}\t{run():.3g}\n")


if __name__ == "__main__":
    main()
