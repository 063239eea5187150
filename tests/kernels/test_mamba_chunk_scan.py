"""The Mamba-2 scan against the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from scan_gates import GATES, cotangents, error, nan_filled_memory, over, twin, worst
from torch import Tensor

from medplat_kernels import dispatch, last_backend, mamba_chunk_scan_combined, use
from medplat_kernels.mamba_chunk_scan import torch as torch_path
from medplat_kernels.mamba_chunk_scan.reference import mamba_chunk_scan_reference


@dataclass(frozen=True)
class Case:
    batch: int = 2
    length: int = 65
    heads: int = 4
    width: int = 5
    groups: int = 2
    states: int = 6
    chunk: int = 64
    decay: float = 4.0
    dt: float = -2.0
    head_skip: bool = False
    without: tuple[str, ...] = ("seq_idx",)

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        torch.manual_seed(6)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tokens = (self.batch, self.length)
        drawn = {
            "x": torch.randn(*tokens, 2 * self.heads, self.width).chunk(2, 2)[1].to(dtype),
            "dt": (self.dt + torch.randn(*tokens, self.heads)).to(dtype),
            "A": -self.decay * (0.25 + torch.rand(self.heads)).to(wide),
            "B": torch.randn(*tokens, self.groups, self.states).to(dtype),
            "C": torch.randn(*tokens, self.groups, self.states).to(dtype),
            "D": torch.randn((self.heads, self.width)[: 2 if self.head_skip else 1]).to(wide),
            "z": torch.randn(*tokens, self.heads, self.width).to(dtype),
            "dt_bias": (torch.randn(self.heads) / 2).to(wide),
            "initial_states": torch.randn(self.batch, self.heads, self.width, self.states).to(wide),
        }
        return {k: v.requires_grad_() for k, v in drawn.items() if k not in self.without}

    def seq_idx(self) -> Tensor | None:
        if "seq_idx" in self.without:
            return None
        changes = torch.rand(self.batch, self.length) < 0.1
        # An index that comes back is a new sequence all the same.
        return changes.cumsum(1) % 2


CASES = [
    Case(length=1),
    Case(length=2, groups=1),
    Case(length=63, groups=4, chunk=32),
    Case(length=64, states=16),
    Case(length=127, chunk=32, batch=1),
    Case(length=372, heads=3, groups=1),
    Case(length=200, chunk=256),
    Case(length=9, chunk=1),
    Case(length=2049, batch=1, heads=2, groups=1, width=3),
    Case(head_skip=True, without=("seq_idx", "z", "dt_bias", "initial_states")),
    Case(without=("seq_idx", "D")),
    Case(length=200, dt=4.0, decay=16),
    Case(length=372, dt=21.0, decay=2),
    Case(length=130, dt=-14.0),
    Case(length=200, chunk=32, without=()),
    Case(length=372, without=("z",), groups=4),
]


def errors(case: Case, dtype: torch.dtype) -> dict[str, float]:
    inputs, seq_idx = case.inputs(dtype), case.seq_idx()
    known = twin(inputs)
    found = mamba_chunk_scan_combined(
        **inputs, chunk_size=case.chunk, seq_idx=seq_idx, dt_softplus=True, return_final_states=True
    )
    assert isinstance(found, tuple)
    assert found[0].dtype == dtype
    expected = mamba_chunk_scan_reference(**known, seq_idx=seq_idx, dt_softplus=True)
    return worst(found, inputs, expected, known)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_within_its_gates(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with nan_filled_memory(monkeypatch):
        assert not over(errors(case, torch.float32), torch.float32)
    assert last_backend("mamba_chunk_scan") == "torch"


WITHOUT_GRADIENTS = [
    *CASES,
    Case(length=130, width=70, states=33, heads=6, groups=2, batch=1),
    Case(length=200, heads=20, groups=4, width=16),
    Case(length=66, states=1, width=1, groups=4, without=()),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", WITHOUT_GRADIENTS, ids=str)
def test_numba_is_within_its_gates(
    case: Case, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All heads and batch entries are shared out, whatever the size of the call."""
    from medplat_kernels.mamba_chunk_scan import numba

    monkeypatch.setattr(numba, "LEAST_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    inputs, seq_idx = case.inputs(), case.seq_idx()
    expected = mamba_chunk_scan_reference(**twin(inputs), seq_idx=seq_idx, dt_softplus=True)
    options = {"seq_idx": seq_idx, "dt_softplus": True, "return_final_states": True}
    with torch.no_grad(), nan_filled_memory(monkeypatch):
        found = mamba_chunk_scan_combined(**inputs, chunk_size=case.chunk, **options)
        again = mamba_chunk_scan_combined(**inputs, chunk_size=case.chunk, **options)
    assert last_backend("mamba_chunk_scan") == "numba"
    for one, other, want in zip(found, again, expected, strict=True):
        assert torch.equal(one, other)
        assert error(one, want) <= 2e-6


def test_numba_keeps_the_digits_of_small_steps_and_hides_no_nan() -> None:
    case = Case(length=70, without=("seq_idx", "dt_bias", "z", "D", "initial_states"))
    inputs = {name: t.detach() for name, t in case.inputs().items()}
    inputs["dt"] = torch.full((2, 70, 4), 0.001)
    inputs["dt"][:, 3] = 5000.0
    expected = mamba_chunk_scan_reference(**twin(inputs))
    found = mamba_chunk_scan_combined(**inputs, chunk_size=64, return_final_states=True)
    for one, want in zip(found, expected, strict=True):
        assert error(one, want) <= 2e-6
    inputs["dt"][0, 40, 1] = torch.nan
    inputs["A"][2] = torch.nan
    wrong = mamba_chunk_scan_combined(**inputs, chunk_size=64).isnan()
    assert wrong[:, 1:, 2].all()
    assert wrong[0, 40:, 1].all()
    assert not wrong[1, :, 1].any()
    assert not wrong[:, :, [0, 3]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numba_in_half_precision(dtype: torch.dtype) -> None:
    inputs = Case(length=130).inputs(dtype)
    with torch.no_grad():
        found = mamba_chunk_scan_combined(**inputs, chunk_size=64, dt_softplus=True)
    assert found.dtype == dtype
    expected = mamba_chunk_scan_reference(**twin(inputs), dt_softplus=True)[0]
    assert error(found, expected) <= GATES[dtype][0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_within_its_gates(dtype: torch.dtype) -> None:
    assert not over(errors(Case(length=130), dtype), dtype)


def test_small_steps_after_a_large_one_keep_their_digits() -> None:
    """A difference of cumulative sums from the chunk's start would have lost them."""
    case = Case(length=64, batch=1, without=("seq_idx", "dt_bias", "z", "D", "initial_states"))
    inputs = case.inputs()
    steps = torch.full((1, 64, 4), 0.001)
    steps[:, 3] = 5000.0
    inputs["dt"] = steps.requires_grad_()
    known = twin(inputs)
    found = mamba_chunk_scan_combined(**inputs, chunk_size=64, return_final_states=True)
    expected = mamba_chunk_scan_reference(**known)
    assert not over(worst(found, inputs, expected, known), torch.float32)


def test_limits_of_dt() -> None:
    case = Case(length=70, dt=0.0)
    inputs = case.inputs()
    known = twin(inputs)
    options = {"dt_softplus": True, "dt_limit": (0.3, 0.9)}
    found = mamba_chunk_scan_combined(**inputs, chunk_size=64, return_final_states=True, **options)
    expected = mamba_chunk_scan_reference(**known, **options)
    assert not over(worst(found, inputs, expected, known), torch.float32)


@pytest.mark.parametrize("without", [(), ("seq_idx",)])
def test_gradcheck(without: tuple[str, ...]) -> None:
    case = Case(1, 7, 2, 2, 1, 2, chunk=3, without=without)
    inputs, seq_idx = case.inputs(torch.float64), case.seq_idx()

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(inputs, tensors, strict=True))
        found = mamba_chunk_scan_combined(
            **named, chunk_size=3, seq_idx=seq_idx, dt_softplus=True, return_final_states=True
        )
        assert isinstance(found, tuple)
        return found

    def reference(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(inputs, tensors, strict=True))
        return mamba_chunk_scan_reference(**named, seq_idx=seq_idx, dt_softplus=True)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)
    assert torch.autograd.gradcheck(reference, tuple(inputs.values()), fast_mode=True)


def test_two_runs_are_bitwise_equal() -> None:
    results = []
    for _ in range(2):
        inputs = Case(length=372).inputs()
        found = mamba_chunk_scan_combined(**inputs, chunk_size=64, dt_softplus=True)
        grads = torch.autograd.grad(found, list(inputs.values()), cotangents([found]))
        results.append((found, *grads))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_autocast_changes_nothing() -> None:
    inputs = Case().inputs()
    plain = mamba_chunk_scan_combined(**inputs, chunk_size=64, dt_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mamba_chunk_scan_combined(**inputs, chunk_size=64, dt_softplus=True)
    assert torch.equal(plain, cast)


@pytest.mark.parametrize("case", [CASES[5], CASES[6], CASES[14], CASES[15]], ids=str)
def test_blocks_of_one_chunk_give_what_one_block_gives(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, seq_idx = case.inputs(), case.seq_idx()
    options = {"seq_idx": seq_idx, "dt_softplus": True, "return_final_states": True}
    with torch.no_grad(), use("torch"):
        expected = mamba_chunk_scan_combined(**inputs, chunk_size=case.chunk, **options)
        monkeypatch.setattr(torch_path, "BLOCK_ELEMENTS", 1)
        found = mamba_chunk_scan_combined(**inputs, chunk_size=case.chunk, **options)
    for one, want in zip(found, expected, strict=True):
        assert error(one, want) <= 1e-6


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_without_gradients_the_inputs_are_left_alone(backend: str) -> None:
    inputs = Case(length=130).inputs()
    kept = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    with torch.no_grad(), use(backend):
        mamba_chunk_scan_combined(**inputs, chunk_size=64, dt_softplus=True)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, kept[name])


def test_compiled_without_gradients_it_gives_the_same() -> None:
    inputs = {name: t.detach() for name, t in Case(length=35).inputs().items()}
    compiled = torch.compile(mamba_chunk_scan_combined, fullgraph=True, backend="aot_eager")
    expected = mamba_chunk_scan_combined(**inputs, chunk_size=32)
    assert error(compiled(**inputs, chunk_size=32), expected) <= 1e-6


def test_final_states_are_no_view_of_the_initial_ones() -> None:
    inputs = {name: t.detach() for name, t in Case(length=0).inputs().items()}
    given = inputs["initial_states"].clone()
    last = mamba_chunk_scan_combined(**inputs, chunk_size=64, return_final_states=True)[1]
    last.fill_(7)
    assert torch.equal(inputs["initial_states"], given)


def test_no_tokens() -> None:
    inputs = Case(length=0).inputs()
    out, last = mamba_chunk_scan_combined(**inputs, chunk_size=64, return_final_states=True)
    assert out.shape == inputs["x"].shape
    assert torch.equal(last, inputs["initial_states"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 65, 4)}, r"x must be \(Bt, L, H, P\)"),
        ({"x": torch.zeros(2, 65, 4, 5, dtype=torch.int64)}, "must be real floating-point"),
        ({"A": -torch.ones(4, dtype=torch.complex64)}, "must be real floating-point"),
        ({"chunk_size": 0}, "chunk_size must be an integer from 1 up, got 0"),
        ({"chunk_size": 64.0}, "chunk_size must be an integer from 1 up"),
        ({"B": torch.zeros(2, 65, 3, 6)}, "the 3 groups of B must divide the 4 heads"),
        ({"C": torch.zeros(2, 65, 2, 5)}, "C must have shape"),
        ({"D": torch.zeros(3)}, r"D must have shape \(4,\)"),
        ({"seq_idx": torch.zeros(2, 64)}, "seq_idx must have shape"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mamba_chunk_scan_combined(**{**Case().inputs(), "chunk_size": 64, **change})


def test_a_backend_that_cannot_run_it_is_refused() -> None:
    with use("triton"), pytest.raises(dispatch.BackendError, match="has no backend 'triton'"):
        mamba_chunk_scan_combined(**Case().inputs(), chunk_size=64)
    with use("numba"), pytest.raises(dispatch.BackendError, match="has no gradients"):
        mamba_chunk_scan_combined(**Case().inputs(), chunk_size=64)
    inputs = {name: t.detach() for name, t in Case().inputs(torch.float64).items()}
    with use("numba"), pytest.raises(dispatch.BackendError, match=r"can't take torch\.float64"):
        mamba_chunk_scan_combined(**inputs, chunk_size=64)
