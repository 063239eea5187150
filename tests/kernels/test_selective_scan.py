"""Every backend of the selective scan against the float64 reference, and the reference itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scan_gates import cotangents, cpu_backends, error, nan_filled_memory, over, twin, worst
from scan_inputs import CASES, ORDER_CASES, Case, typed
from torch import Tensor

from medplat_kernels import last_backend, selective_scan_vmamba_fn, use
from medplat_kernels.selective_scan import checkpoint_size, selective_scan_fn
from medplat_kernels.selective_scan import torch as torch_path
from medplat_kernels.selective_scan.ops import selective_scan_forward
from medplat_kernels.selective_scan.reference import selective_scan_reference

STRONG = Case(length=372, width=20, states=16, dt=21.0, decay=16)
every_backend = pytest.mark.parametrize("backend", cpu_backends("selective_scan"))


def run(case: Case, inputs: dict[str, Tensor], backend: str) -> tuple[Tensor, Tensor]:
    found = selective_scan_fn(**inputs, **case.keywords, return_last_state=True, backend=backend)
    assert isinstance(found, tuple)
    assert last_backend("selective_scan") == backend
    return found


def errors(case: Case, dtype: torch.dtype, backend: str) -> dict[str, float]:
    inputs = typed(case.inputs(), dtype)
    known = twin(inputs)
    found = run(case, inputs, backend)
    assert found[0].dtype == dtype
    return worst(found, inputs, selective_scan_reference(**known, **case.keywords), known)


@every_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_within_its_gates(
    case: Case, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nan_filled_memory(monkeypatch):
        assert not over(errors(case, torch.float32, backend), torch.float32)


@every_backend
@pytest.mark.parametrize("case", ORDER_CASES, ids=str)
def test_every_order_is_gather_scan_scatter(
    case: Case, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nan_filled_memory(monkeypatch):
        assert not over(errors(case, torch.float32, backend), torch.float32)


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case",
    [
        Case(length=130, width=24, states=16, groups=2),
        Case(length=65, width=33, layout="bld", states=8),
        Case(length=105, order="tri3d", grid=(3, 5, 7), own_u=True),
        Case(length=130, width=16, dt=4.0, decay=16),
    ],
    ids=str,
)
def test_half_precision_is_within_its_gates(case: Case, dtype: torch.dtype, backend: str) -> None:
    assert not over(errors(case, dtype, backend), dtype)


@pytest.mark.slow
@every_backend
@pytest.mark.parametrize(
    "case",
    [
        Case(batch=1, length=110592, width=16, states=2),
        Case(batch=1, length=24**3, width=16, states=4, order="tri3d", grid=(24, 24, 24)),
        Case(batch=1, length=2049, width=96, states=16, dt=4.0, decay=16),
    ],
    ids=str,
)
def test_long_sequences_are_within_the_gates(case: Case, backend: str) -> None:
    assert not over(errors(case, torch.float32, backend), torch.float32)


@pytest.mark.parametrize("case", [Case(length=9, width=3, states=2), *ORDER_CASES[-2:-1]], ids=str)
def test_the_torch_path_passes_gradcheck(case: Case) -> None:
    small = dataclasses.replace(case, width=2, states=2, batch=1)
    inputs = typed(small.inputs(), torch.float64)

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return run(small, dict(zip(inputs, tensors, strict=True)), "torch")

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)


def test_the_reference_passes_gradcheck() -> None:
    case = Case(length=5, width=2, states=2, order="bi", batch=1)
    inputs = typed(case.inputs(), torch.float64)

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(inputs, tensors, strict=True))
        return selective_scan_reference(**named, **case.keywords)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))


def test_the_reference_is_a_convolution_where_nothing_varies() -> None:
    """With constant dt, B and C the scan is a convolution with sum_n C_n exp(k dt A_n) dt B_n."""
    generator = np.random.default_rng(3)
    length, states, dt = 40, 5, 0.3
    A, B, C = -generator.random(states) * 3, *generator.normal(size=(2, states))
    u = generator.normal(size=length)
    kernel = [(C * np.exp(k * dt * A) * dt * B).sum() for k in range(length)]
    expected = np.convolve(u, kernel)[:length] + 0.7 * u
    found, last = selective_scan_reference(
        torch.tensor(u)[None, None], torch.full((1, 1, length), dt, dtype=torch.float64),
        torch.tensor(A)[None], torch.tensor(B)[None], torch.tensor(C)[None],
        torch.full((1,), 0.7, dtype=torch.float64),
    )  # fmt: skip
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=1e-12, atol=1e-12)
    powers = np.exp(np.arange(length - 1, -1, -1)[:, None] * dt * A) * dt * B
    np.testing.assert_allclose(last[0, 0].numpy(), u @ powers, rtol=1e-12, atol=1e-12)


@every_backend
def test_a_state_gradient_taken_by_subtraction_would_be_caught(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a_t h_{t-1} recovered as h_t - dt u B is rounding noise where decay is strong."""
    assert not over(errors(STRONG, torch.float32, backend), torch.float32)
    if backend != "torch":
        return
    monkeypatch.setattr(
        torch_path._Block, "decayed", lambda self, states: states[1:] - self.x * self.B
    )
    assert "gradient of A" in over(errors(STRONG, torch.float32, "torch"), torch.float32)
    assert not over(errors(Case(), torch.float32, "torch"), torch.float32)


@every_backend
@pytest.mark.parametrize("case", [CASES[6], ORDER_CASES[-3]], ids=str)
def test_two_runs_are_bitwise_equal(case: Case, backend: str) -> None:
    runs = []
    for _ in range(2):
        inputs = typed(case.inputs(), torch.float32)
        found = run(case, inputs, backend)
        grads = torch.autograd.grad(found, list(inputs.values()), cotangents(found))
        runs.append((*found, *grads))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@every_backend
@pytest.mark.parametrize("cut", [1, 64, 77])
def test_a_sequence_in_two_parts_is_the_whole(cut: int, backend: str) -> None:
    """The last state carries on, and its gradient carries back."""
    case = Case(length=141, width=18, states=5)
    inputs = typed(case.inputs(), torch.float32)
    known = twin(inputs)
    whole = selective_scan_reference(**known, **case.keywords)

    def part(window: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        cutting = {"u", "delta", "B", "C", "z"}
        pieces = {k: v[..., window] if k in cutting else v for k, v in inputs.items()}
        return run(case, pieces | {"initial_state": state}, backend)

    first, state = part(slice(0, cut), inputs["initial_state"])
    second, last = part(slice(cut, None), state)
    found = (torch.cat((first, second), 2), last)
    assert not over(worst(found, inputs, whole, known), torch.float32)


@every_backend
@pytest.mark.parametrize("constant", ["BC", "B", "C"])
def test_constant_b_and_c_are_one_row_a_channel(constant: str, backend: str) -> None:
    case = Case(length=70, width=6, states=3)
    for layout in ("bdl", "bld"):
        case = dataclasses.replace(case, layout=layout)
        inputs = case.inputs()
        inputs |= {name: torch.randn(6, 3).double() for name in constant}
        inputs = typed(inputs, torch.float32)
        known = twin(inputs)
        expected = selective_scan_reference(**known, **case.keywords)
        found = run(case, inputs, backend)
        assert not over(worst(found, inputs, expected, known), torch.float32)


@every_backend
def test_one_group_may_lack_its_axis(backend: str) -> None:
    for layout, axis in (("bdl", 1), ("bld", 2)):
        case = Case(length=40, layout=layout)
        inputs = typed(case.inputs(), torch.float32)
        with_axis = run(case, inputs, backend)[0]
        without = {name: inputs[name].squeeze(axis) for name in ("B", "C")}
        assert torch.equal(with_axis, run(case, inputs | without, backend)[0])


@every_backend
@pytest.mark.parametrize("wanted", ["u", "A", "C", "z", "initial_state"])
def test_gradients_of_any_subset(wanted: str, backend: str) -> None:
    case = Case(length=66)
    inputs = typed(case.inputs(), torch.float32)
    found = run(case, inputs, backend)
    everything = torch.autograd.grad(found[0].sum(), list(inputs.values()))
    alone = {name: t.detach().requires_grad_(name == wanted) for name, t in inputs.items()}
    (grad,) = torch.autograd.grad(run(case, alone, backend)[0].sum(), [alone[wanted]])
    assert torch.equal(grad, everything[list(inputs).index(wanted)])


@every_backend
@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_no_tokens_and_no_batch(layout: str, backend: str) -> None:
    for case in (Case(length=0, layout=layout), Case(batch=0, layout=layout)):
        inputs = typed(case.inputs(), torch.float32)
        out, last = selective_scan_fn(
            **inputs, **case.keywords, return_last_state=True, backend=backend
        )
        assert out.shape == inputs["u"].shape
        assert torch.equal(last, inputs["initial_state"])
        grads = torch.autograd.grad((out, last), list(inputs.values()), cotangents((out, last)))
        for (name, tensor), grad in zip(inputs.items(), grads, strict=True):
            given = cotangents((out, last))[1] if name == "initial_state" else tensor * 0
            assert torch.equal(grad, given)


def test_no_states_leaves_the_skip_and_the_gate() -> None:
    case = Case(states=0, length=70)
    inputs = typed(case.inputs(), torch.float32)
    out = selective_scan_fn(**inputs, **case.keywords)
    expected = inputs["D"][:, None] * inputs["u"] * torch.nn.functional.silu(inputs["z"])
    torch.testing.assert_close(out, expected)


@every_backend
def test_nothing_is_saved_without_gradients(backend: str) -> None:
    case = Case(length=130, without=("z", "D", "initial_state"), batch=1)
    inputs = typed(case.inputs(), torch.float32)
    u, delta, A, B, C, bias = (t.detach().contiguous() for t in inputs.values())
    sizes = []
    for save in (False, True):
        _, saved, _ = selective_scan_forward(
            u, delta, A, B, C, None, None, bias, None, True, "raster", [130], False, torch.float32,
            save, backend,
        )  # fmt: skip
        sizes.append(saved.numel())
    assert sizes == [0, checkpoint_size(1, 20, 4, 130)] == [0, 3 * 20 * 4]


@every_backend
def test_vmamba_gives_float32_from_half_precision(backend: str) -> None:
    case = Case(length=100, width=32, groups=4, states=1, without=("z", "initial_state"))
    inputs = typed(case.inputs(), torch.float16)
    out = selective_scan_vmamba_fn(**inputs, backend=backend)
    expected, _ = selective_scan_reference(**twin(inputs), delta_softplus=True)
    assert out.dtype == torch.float32
    assert error(out, expected) <= 2e-6
    assert selective_scan_vmamba_fn(**inputs, oflex=False, backend=backend).dtype == torch.float16


@every_backend
def test_autocast_changes_nothing_and_mixed_dtypes_are_widened(backend: str) -> None:
    case = Case(length=66)
    inputs = typed(case.inputs(), torch.float32)
    plain = run(case, inputs, backend)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(case, inputs, backend)
    for first, second in zip(plain, cast, strict=True):
        assert torch.equal(first, second)
    halves = {name: inputs[name].bfloat16() for name in ("B", "C")}
    mixed = run(case, inputs | halves, backend)[0]
    widened = run(case, inputs | {k: v.float() for k, v in halves.items()}, backend)[0]
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, widened)


def test_the_backward_pass_stays_on_the_backend_of_the_forward_pass() -> None:
    case = Case(length=130)
    for backend in cpu_backends("selective_scan"):
        inputs = typed(case.inputs(), torch.float32)
        found = run(case, inputs, backend)
        plain = torch.autograd.grad(
            found, list(inputs.values()), cotangents(found), retain_graph=True
        )
        for other in cpu_backends("selective_scan"):
            with use(other):
                again = torch.autograd.grad(
                    found, list(inputs.values()), cotangents(found), retain_graph=True
                )
            for first, second in zip(plain, again, strict=True):
                assert torch.equal(first, second)


CHANGES = [
    ({"u": torch.zeros(2, 20)}, "u must have three axes"),
    ({"A": torch.zeros(20, 4, dtype=torch.complex64)}, "A must be real"),
    ({"A": torch.zeros(7, 4)}, "u has 20 channels and A 7"),
    ({"delta": torch.zeros(2, 20, 64)}, r"delta must have shape \(2, 20, 65\), got \(2, 20, 64\)"),
    ({"B": torch.zeros(2, 3, 4, 65)}, "B has 3 groups"),
    ({"C": torch.zeros(2, 1, 5, 65)}, "C must have shape"),
    ({"B": torch.zeros(20)}, "B must be"),
    ({"D": torch.zeros(3)}, r"D must have shape \(20,\)"),
    ({"z": torch.zeros(2, 20, 1)}, "z must have shape"),
    ({"initial_state": torch.zeros(2, 20, 3)}, "initial_state must have shape"),
    ({"u": torch.zeros(2, 20, 65, dtype=torch.int64)}, "real floating-point tensors"),
    ({"layout": "lbd"}, "layout must be 'bdl' or 'bld'"),
    ({"order": "column"}, "needs grid"),
    ({"order": "column", "grid": (5, 12)}, r"grid \(5, 12\) has 60 tokens, not 65"),
    ({"order": ()}, "names no scan order"),
    ({"order": "bi"}, "u has 20 channels and A 20: with 2 orders|B has 1 groups"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_what_does_not_fit_is_refused_in_one_sentence(
    change: dict[str, object], words: str
) -> None:
    case = Case()
    with pytest.raises(ValueError, match=words) as refused:
        selective_scan_fn(**{**case.inputs(), **case.keywords, **change})
    assert "\n" not in str(refused.value)
