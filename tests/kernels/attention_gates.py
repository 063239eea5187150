"""How an attention operator is held against its float64 reference and against itself."""

from __future__ import annotations

import pytest
import torch
from scan_gates import GATES, cotangents, error, nan_filled_memory

BACKENDS = ("numba", "torch")
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")  # of opcheck


def run(function, inputs):
    """Outputs and gradients of all inputs, under one random weighting of the outputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    slopes = torch.autograd.grad(outputs, leaves, cotangents(outputs))
    return [out.detach() for out in outputs], list(slopes)


def check(operator, reference, inputs):
    """The operator against the float64 reference on the same numbers, twice, with NaN in memory."""
    with pytest.MonkeyPatch.context() as patch, nan_filled_memory(patch):
        found, slopes = run(operator, inputs)
        again, slopes_again = run(operator, inputs)
    wanted, wanted_slopes = run(reference, [x.double() for x in inputs])
    forward, gradient = GATES[inputs[0].dtype]
    for one, other, true in zip(found, again, wanted, strict=True):
        assert torch.equal(one, other)
        assert error(one, true) <= forward
    for one, other, true, given in zip(slopes, slopes_again, wanted_slopes, inputs, strict=True):
        assert one.shape == given.shape
        assert one.dtype == given.dtype
        assert torch.equal(one, other)
        assert error(one, true) <= gradient


def compiled(function, inputs):
    """Traced whole by torch.compile, forward and backward, it gives the same bits."""
    torch._dynamo.reset()
    found, slopes = run(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs)
    wanted, wanted_slopes = run(function, inputs)
    for one, other in zip([*found, *slopes], [*wanted, *wanted_slopes], strict=True):
        assert torch.equal(one, other)
