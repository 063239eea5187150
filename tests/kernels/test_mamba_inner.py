"""The Mamba block against the composition of the references of its parts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from scan_gates import cotangents, cpu_backends, error, over, twin, worst
from torch import Tensor

from medplat_kernels import dispatch, last_backend, mamba_inner, scan_orders
from medplat_kernels.mamba_inner.reference import mamba_inner_reference

both = set(cpu_backends("selective_scan")) & set(cpu_backends("causal_conv1d"))
every_backend = pytest.mark.parametrize("backend", sorted(both))


@dataclass(frozen=True)
class Case:
    batch: int = 2
    width: int = 20
    length: int = 65
    states: int = 4
    rank: int = 3
    order: str = "raster"
    grid: tuple[int, ...] | None = None
    layout: str = "bdl"
    without: tuple[str, ...] = ()

    @property
    def keywords(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("order", "grid", "layout")}

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        torch.manual_seed(4)
        count = len(scan_orders.names_of(self.order))
        channels, rows = count * self.width, count * (self.rank + 2 * self.states)
        xz = torch.randn(self.batch, 2 * self.width, self.length)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        drawn = {
            "conv1d_weight": torch.randn(channels, 1, 4) / 2,
            "conv1d_bias": torch.randn(channels) / 4,
            "x_proj_weight": torch.randn(rows, self.width) / self.width**0.5,
            "dt_proj_weight": torch.randn(channels, self.rank) / self.rank,
            "A": -torch.arange(1, self.states + 1).float().repeat(channels, 1),
            "D": torch.randn(channels),
            "delta_bias": torch.randn(channels) - 3,
        }
        weights = {k: v.to(wide).requires_grad_() for k, v in drawn.items()}
        xz = xz.transpose(1, 2) if self.layout == "bld" else xz
        named = {"xz": xz.to(dtype).requires_grad_(), **weights}
        return {name: each for name, each in named.items() if name not in self.without}


def given(inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
    return {"conv1d_bias": None, **inputs}


CASES = [
    Case(),
    Case(length=1, width=1, states=1, rank=1),
    Case(length=130, width=33, batch=1, layout="bld"),
    Case(without=("conv1d_bias", "D", "delta_bias")),
    Case(order="raster_reversed", length=40),
    Case(order="tri3d", grid=(3, 5, 7), length=105),
    Case(order="tri3d", grid=(3, 5, 7), length=105, layout="bld", width=17),
    Case(order="bi", length=129, states=16),
    Case(order="strided(5)", grid=(70,), length=70, layout="bld"),
]


@every_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_are_within_their_gates(case: Case, backend: str) -> None:
    inputs = case.inputs()
    known = twin(inputs)
    found = mamba_inner(**given(inputs), **case.keywords, backend=backend)
    assert last_backend("selective_scan") == last_backend("causal_conv1d") == backend
    expected = mamba_inner_reference(**given(known), **case.keywords)
    assert not over(worst([found], inputs, [expected], known), torch.float32)


@every_backend
@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_bfloat16_tokens_with_float32_parameters(layout: str, backend: str) -> None:
    case = Case(layout=layout)
    inputs = case.inputs(torch.bfloat16)
    known = twin(inputs)
    found = mamba_inner(**inputs, **case.keywords, backend=backend)
    assert found.dtype == torch.bfloat16
    expected = mamba_inner_reference(**known, **case.keywords)
    measured = worst([found], inputs, [expected], known)
    assert max(measured.values()) <= 4e-2, measured


@every_backend
def test_autocast_casts_the_projections_only(backend: str) -> None:
    """With projections that bfloat16 holds exactly and that are never used, nothing changes."""
    case = Case(length=70)
    inputs = case.inputs()
    plain = mamba_inner(**inputs, **case.keywords, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mamba_inner(**inputs, **case.keywords, backend=backend)
        grads = torch.autograd.grad(cast.sum(), list(inputs.values()))
    assert cast.dtype == torch.float32
    assert 1e-5 < error(cast, plain.double()) < 2e-2
    expected = torch.autograd.grad(plain.sum(), list(inputs.values()))
    for grad, want in zip(grads, expected, strict=True):
        assert grad.dtype == want.dtype
        assert error(grad, want) < 4e-2
    # No projection: B and C are zero and only the convolution, the skip and the gate are left.
    silent = inputs | {"x_proj_weight": torch.zeros_like(inputs["x_proj_weight"])}
    plain = mamba_inner(**silent, **case.keywords, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mamba_inner(**silent, **case.keywords, backend=backend), plain)


def test_gradcheck_of_the_operator_and_of_the_reference() -> None:
    for case in (Case(1, 2, 5, 2, 1), Case(1, 2, 6, 1, 1, "tri3d", (3, 1, 2), "bld")):
        inputs = case.inputs(torch.float64)

        def call(*tensors: Tensor, case: Case = case) -> Tensor:
            named = dict(zip(case.inputs(), tensors, strict=True))
            return mamba_inner(**named, **case.keywords, backend="torch")

        def reference(*tensors: Tensor, case: Case = case) -> Tensor:
            named = dict(zip(case.inputs(), tensors, strict=True))
            return mamba_inner_reference(**named, **case.keywords)

        assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)
        assert torch.autograd.gradcheck(reference, tuple(inputs.values()), fast_mode=True)


@every_backend
def test_two_runs_are_bitwise_equal(backend: str) -> None:
    case, results = Case(order="bi", length=200), []
    for _ in range(2):
        inputs = case.inputs()
        found = mamba_inner(**inputs, **case.keywords, backend=backend)
        grads = torch.autograd.grad(found, list(inputs.values()), cotangents([found]))
        results.append((found, *grads))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_flipping_the_tokens_swaps_the_two_directions() -> None:
    """A `bi` block on flipped tokens with its two parameter sets swapped gives flipped outputs."""
    case = Case(order="bi", length=50)
    inputs = case.inputs()
    found = mamba_inner(**inputs, **case.keywords)
    swapped = {k: v if k == "xz" else torch.cat(v.chunk(2)[::-1]) for k, v in inputs.items()}
    swapped["xz"] = inputs["xz"].flip(2)
    again = mamba_inner(**swapped, **case.keywords)
    torch.testing.assert_close(again.flip(2), found, rtol=1e-5, atol=1e-5)


def test_only_inputs_and_states_are_kept_for_the_backward_pass() -> None:
    case = Case(batch=1, width=32, length=640, states=4)
    kept: list[int] = []
    inputs = case.inputs()

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mamba_inner(**inputs, **case.keywords)
    assert sum(kept) <= sum(t.numel() for t in inputs.values()) + 10 * 32 * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"xz": torch.zeros(2, 41, 65)}, "A must be real"),
        ({"xz": torch.zeros(2, 40)}, "xz must be real with three axes"),
        ({"A": torch.zeros(20, 5)}, r"x_proj_weight must have shape \(13, 20\)"),
        ({"dt_proj_weight": torch.zeros(19, 3)}, "dt_proj_weight must have shape"),
        ({"dt_proj_weight": torch.zeros(20)}, "dt_proj_weight must have two axes"),
        ({"D": torch.zeros(4)}, "D must have shape"),
        ({"order": "column"}, "needs grid"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], words: str) -> None:
    case = Case()
    with pytest.raises(ValueError, match=words):
        mamba_inner(**{**case.inputs(), **case.keywords, **change})


def test_a_backend_that_an_inner_operator_lacks_is_refused() -> None:
    with pytest.raises(dispatch.BackendError):
        mamba_inner(**Case().inputs(), backend="cuda-graphs")
