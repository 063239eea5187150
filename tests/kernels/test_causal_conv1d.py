"""Every backend of the causal convolution against the float64 reference and torch's conv1d."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from scan_gates import cotangents, cpu_backends, error, nan_filled_memory, over, twin, worst
from torch import Tensor

from medplat_kernels import causal_conv1d_fn, dispatch, last_backend, scan_orders
from medplat_kernels.causal_conv1d.reference import causal_conv1d_reference

every_backend = pytest.mark.parametrize("backend", cpu_backends("causal_conv1d"))


@dataclass(frozen=True)
class Case:
    batch: int = 2
    width: int = 20
    length: int = 65
    taps: int = 4
    order: str = "raster"
    grid: tuple[int, ...] | None = None
    layout: str = "bdl"
    activation: str | None = "silu"
    without: tuple[str, ...] = ("initial_states",)

    @property
    def keywords(self) -> dict[str, object]:
        named = ("order", "grid", "layout", "activation")
        return {name: getattr(self, name) for name in named}

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        torch.manual_seed(2)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        channels = self.width * len(scan_orders.names_of(self.order))
        x = torch.randn(self.batch, 2 * self.width, self.length).chunk(2, 1)[0]
        drawn = {
            "x": x.transpose(1, 2) if self.layout == "bld" else x,
            "weight": torch.randn(channels, self.taps),
            "bias": torch.randn(channels),
            "initial_states": torch.randn(self.batch, channels, self.taps - 1),
        }
        return {
            name: tensor.to(dtype if name == "x" else wide).requires_grad_()
            for name, tensor in drawn.items()
            if name not in self.without
        }


CASES = [
    Case(),
    Case(length=1, width=1),
    Case(length=2, taps=4, without=()),
    Case(length=372, width=33, taps=3, batch=1),
    Case(length=64, taps=2, without=("bias", "initial_states")),
    Case(length=127, width=16, activation=None, without=()),
    Case(length=66, width=48, layout="bld"),
    Case(length=131, width=19, layout="bld", without=()),
    Case(order="raster_reversed", length=70, without=()),
    Case(order="column", grid=(9, 8), length=72, layout="bld"),
    Case(order="inter_slice", grid=(3, 5, 7), length=105, without=()),
    Case(order="tri3d", grid=(3, 5, 7), length=105),
    Case(order="tri3d", grid=(2, 17, 5), length=170, layout="bld", without=()),
    Case(order="cross2d", grid=(1, 67), length=67, width=17),
]


def runs(case: Case, backend: str) -> bool:
    """Whether a backend takes a case; one that does not must say so."""
    x, weight = torch.zeros(1, case.width, 1), torch.zeros(case.width, case.taps)
    orders = tuple(scan_orders.find(name) for name in scan_orders.names_of(case.order))
    return bool(dispatch.module("causal_conv1d", backend).can_run(x, weight, orders))


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_are_within_their_gates(
    case: Case, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = case.inputs(dtype)
    if not runs(case, backend):
        with pytest.raises(dispatch.BackendError):
            causal_conv1d_fn(**inputs, **case.keywords, backend=backend)
        return
    known = twin(inputs)
    with nan_filled_memory(monkeypatch):
        found = causal_conv1d_fn(**inputs, **case.keywords, backend=backend)
        assert isinstance(found, Tensor)
        assert last_backend("causal_conv1d") == backend
        assert found.dtype == dtype
        expected = causal_conv1d_reference(**known, **case.keywords)
        assert not over(worst([found], inputs, [expected], known), dtype)


@every_backend
@pytest.mark.parametrize("case", [CASES[0], CASES[6]], ids=str)
def test_it_is_conv1d_with_zeros_on_the_left(case: Case, backend: str) -> None:
    inputs = case.inputs(torch.float32)
    x = inputs["x"].transpose(1, 2) if case.layout == "bld" else inputs["x"]
    expected = F.conv1d(
        x, inputs["weight"][:, None], inputs["bias"], padding=case.taps - 1, groups=case.width
    )
    expected = F.silu(expected[..., : case.length])
    found = causal_conv1d_fn(**inputs, **case.keywords, backend=backend)
    found = found.transpose(1, 2) if case.layout == "bld" else found
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_backend
@pytest.mark.parametrize("order", ["raster", "raster_reversed"])
def test_final_states_carry_a_sequence_on(order: str, backend: str) -> None:
    case = Case(length=21, order=order, without=("initial_states",))
    inputs = case.inputs(torch.float32)
    whole = causal_conv1d_fn(**inputs, **case.keywords, backend=backend)
    for cut in (1, 2, 9, 20):
        early, late = slice(0, cut), slice(cut, None)
        if order == "raster_reversed":
            early, late = slice(21 - cut, None), slice(0, 21 - cut)
        x, rest = inputs["x"], {k: v for k, v in inputs.items() if k != "x"}
        first, states = causal_conv1d_fn(
            x[..., early], **rest, **case.keywords, return_final_states=True, backend=backend
        )
        second = causal_conv1d_fn(
            x[..., late], **rest, **case.keywords, initial_states=states, backend=backend
        )
        parts = (first, second) if order == "raster" else (second, first)
        torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-6, atol=1e-6)


def test_gradcheck() -> None:
    for case in (Case(length=7, width=2, without=()), Case(5, 1, 6, 3, "bi", None, "bld")):
        inputs = case.inputs(torch.float64)

        def call(*tensors: Tensor, case: Case = case) -> Tensor:
            named = dict(zip(case.inputs(torch.float64), tensors, strict=True))
            found = causal_conv1d_fn(**named, **case.keywords, backend="torch")
            assert isinstance(found, Tensor)
            return found

        def reference(*tensors: Tensor, case: Case = case) -> Tensor:
            named = dict(zip(case.inputs(torch.float64), tensors, strict=True))
            return causal_conv1d_reference(**named, **case.keywords)

        assert torch.autograd.gradcheck(call, tuple(inputs.values()))
        assert torch.autograd.gradcheck(reference, tuple(inputs.values()))


@every_backend
def test_two_runs_are_bitwise_equal(backend: str) -> None:
    case, results = Case(length=372, width=33), []
    for _ in range(2):
        inputs = case.inputs(torch.float32)
        found = causal_conv1d_fn(**inputs, **case.keywords, backend=backend)
        grads = torch.autograd.grad(found, list(inputs.values()), cotangents([found]))
        results.append((found, *grads))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@every_backend
def test_no_tokens(backend: str) -> None:
    inputs = Case(length=0).inputs(torch.float32)
    found = causal_conv1d_fn(**inputs, activation="silu", backend=backend)
    assert found.shape == (2, 20, 0)
    for grad in torch.autograd.grad(found.sum(), list(inputs.values())):
        assert error(grad, torch.zeros_like(grad)) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "relu"}, "activation must be None or 'silu'"),
        ({"weight": torch.zeros(19, 4)}, r"weight must be \(20, width\)"),
        ({"bias": torch.zeros(4)}, r"bias must have shape \(20,\)"),
        ({"initial_states": torch.zeros(2, 20, 4)}, r"initial_states must have shape \(2, 20, 3\)"),
        ({"x": torch.zeros(20, 65)}, "x must be real with three axes"),
        ({"layout": "ldb"}, "layout must be"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], words: str) -> None:
    case = Case()
    with pytest.raises(ValueError, match=words):
        causal_conv1d_fn(**{**case.inputs(torch.float32), **case.keywords, **change})
