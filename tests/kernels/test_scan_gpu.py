"""The scan and the convolution on a GPU: every case of the CPU's tests, repeats, large offsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from interpret_scan import CONVOLUTIONS, convolution_inputs
from scan_gates import over, twin, worst
from scan_inputs import CASES, ORDER_CASES, Case, typed
from torch import Tensor

from medplat_kernels import causal_conv1d_fn, last_backend, selective_scan_fn
from medplat_kernels.causal_conv1d.reference import causal_conv1d_reference
from medplat_kernels.selective_scan import triton as scan_triton
from medplat_kernels.selective_scan.reference import selective_scan_reference

pytestmark = pytest.mark.gpu
SPLIT = Case(batch=1, width=96, length=2049, states=16)


def on(device: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.detach().to(device).requires_grad_() for name, each in inputs.items()}


def run(case: Case, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    found = selective_scan_fn(**inputs, **case.keywords, return_last_state=True)
    assert isinstance(found, tuple)
    assert last_backend("selective_scan") == "triton"
    return found


def errors(case: Case, dtype: torch.dtype) -> dict[str, float]:
    inputs = on("cuda", typed(case.inputs(), dtype))
    exact = twin(inputs)
    expected = selective_scan_reference(**exact, **case.keywords)
    return over(worst(run(case, inputs), inputs, expected, exact), dtype)


@pytest.fixture
def nan_filled(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", [*CASES, *ORDER_CASES], ids=str)
def test_float32_is_within_its_gates(case: Case, nan_filled: None) -> None:
    assert errors(case, torch.float32) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_half_precision_is_within_its_gates(dtype: torch.dtype, layout: str) -> None:
    assert errors(Case(length=372, width=20, states=16, layout=layout), dtype) == {}


@pytest.mark.parametrize("how", CONVOLUTIONS.values(), ids=str)
def test_the_convolution_is_within_its_gates(how: dict[str, Any], nan_filled: None) -> None:
    inputs = on("cuda", convolution_inputs(how))
    exact = twin(inputs)
    out = causal_conv1d_fn(**inputs, **how)
    assert last_backend("causal_conv1d") == "triton"
    expected = causal_conv1d_reference(**exact, **how)
    assert over(worst([out], inputs, [expected], exact), torch.float32) == {}


def gradients(case: Case) -> list[Tensor]:
    inputs = on("cuda", typed(case.inputs(), torch.float32))
    out, last = run(case, inputs)
    grads = torch.autograd.grad((out.sum() + last.square().sum()), list(inputs.values()))
    return [out, last, *grads]


@pytest.mark.parametrize("order", ["raster", "bi"])
def test_two_runs_agree_bit_by_bit(order: str) -> None:
    case = Case(batch=2, width=40, length=1030, states=16, order=order)
    for first, second in zip(gradients(case), gradients(case), strict=True):
        assert torch.equal(first, second)


def test_split_and_unsplit_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = gradients(SPLIT)
    assert scan_triton.split(3, 2049, scan_triton.multiprocessors(apart[0].device))[0] > 1
    monkeypatch.setattr(scan_triton, "multiprocessors", lambda _: 0)
    for one, other in zip(apart, gradients(SPLIT), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_offsets_over_two_to_the_31() -> None:
    """35 volumes of 64 channels and 10^6 tokens: batch strides leave 32 bits, in bfloat16."""
    length, batch = 1_000_000, 35
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    u, delta = normal(1, 64, length), normal(1, 64, length)
    B, A = normal(1, 1, length), -torch.ones(64, 1, device="cuda")
    alone = selective_scan_fn(u, delta, A, B, B, delta_softplus=True)
    many = [each.expand(batch, -1, -1).contiguous() for each in (u, delta, B)]
    together = selective_scan_fn(many[0], many[1], A, many[2], many[2], delta_softplus=True)
    assert isinstance(alone, Tensor)
    assert isinstance(together, Tensor)
    error = (together[-1].float() - alone[0].float()).norm() / alone.float().norm()
    assert error <= 1e-2
