"""The scan operators as torch operators: opcheck, torch.compile, and what hides a backend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from scan_gates import cotangents, cpu_backends, error
from torch import Tensor

from medplat_kernels import causal_conv1d_fn, mamba_chunk_scan_combined, mamba_inner
from medplat_kernels.causal_conv1d.ops import causal_conv1d_forward
from medplat_kernels.mamba_inner.ops import mamba_inner_forward
from medplat_kernels.selective_scan import selective_scan_fn
from medplat_kernels.selective_scan.ops import selective_scan_forward

SCAN = cpu_backends("selective_scan")
CONVOLUTION = cpu_backends("causal_conv1d")
BOTH = tuple(name for name in SCAN if name in CONVOLUTION)


def leaves(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def scan_leaves(length: int) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias, initial_state of two orders."""
    Bt, D, N, L = 2, 17, 3, length
    found = leaves(
        1, (Bt, D, L), (Bt, 2 * D, L), (2 * D, N), (Bt, 2, N, L), (Bt, 2, N, L), (2 * D,),
        (Bt, D, L), (2 * D,), (Bt, 2 * D, N),
    )  # fmt: skip
    found[2] = (-torch.rand(2 * D, N)).requires_grad_()
    return found


def inner_leaves(length: int) -> list[Tensor]:
    D, N, R = 17, 3, 2
    found = leaves(2, (2, 2 * D, length), (D, 4), (D,), (R + 2 * N, D), (D, R), (D, N), (D,), (D,))
    found[5] = (-torch.rand(D, N)).requires_grad_()
    return found


@pytest.mark.parametrize("backend", SCAN)
def test_opcheck_of_the_scan(backend: str) -> None:
    args = (*scan_leaves(70), True, "raster,raster_reversed", [70], False, torch.float32)
    torch.library.opcheck(selective_scan_forward.overload, (*args, True, backend))
    bare = [each.detach() for each in scan_leaves(33)]
    bare = [None if at in (5, 6, 7, 8) else each for at, each in enumerate(bare)]
    rest = (False, "raster,raster_reversed", [33], False, torch.bfloat16, False, backend)
    torch.library.opcheck(
        selective_scan_forward.overload, (*bare, *rest), test_utils="test_faketensor"
    )


@pytest.mark.parametrize("backend", CONVOLUTION)
def test_opcheck_of_the_convolution(backend: str) -> None:
    x, weight, bias, states = leaves(3, (2, 17, 70), (17, 4), (17,), (2, 17, 3))
    args = (x, weight, bias, states, True, "raster", [70], False, backend)
    torch.library.opcheck(causal_conv1d_forward.overload, args)


@pytest.mark.parametrize("backend", BOTH)
def test_opcheck_of_the_block(backend: str) -> None:
    args = (*inner_leaves(70), True, "raster", [70], False, True, backend)
    torch.library.opcheck(mamba_inner_forward.overload, args)


def scan(*tensors: Tensor, backend: str) -> tuple[Tensor, ...]:
    found = selective_scan_fn(
        *tensors[:8], True, True, initial_state=tensors[8], order="bi", backend=backend
    )
    assert isinstance(found, tuple)
    return found


def scan_of_a_grid(*tensors: Tensor, backend: str) -> tuple[Tensor, ...]:
    found = selective_scan_fn(
        *tensors[:8], True, initial_state=tensors[8], backend=backend,
        order=("column", "column_reversed"),
        grid=(tensors[0].shape[2] // 5, 5),
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return (found,)


def block(*tensors: Tensor, backend: str) -> tuple[Tensor, ...]:
    return (mamba_inner(*tensors, backend=backend),)


def convolution(*tensors: Tensor, backend: str) -> tuple[Tensor, ...]:
    found = causal_conv1d_fn(
        *tensors[:3], "silu", return_final_states=True, initial_states=None, backend=backend
    )
    assert isinstance(found, tuple)
    return found


def chunks(*tensors: Tensor, backend: str) -> tuple[Tensor, ...]:
    x, dt, A, B, C, D = tensors
    found = mamba_chunk_scan_combined(
        x, dt, -A.abs(), B, C, 32, D, dt_softplus=True, return_final_states=True
    )
    assert isinstance(found, tuple)
    return found


CALLS: dict[Callable[..., tuple[Tensor, ...]], Callable[[int], list[Tensor]]] = {
    scan: scan_leaves,
    scan_of_a_grid: scan_leaves,
    block: inner_leaves,
    convolution: lambda length: leaves(3, (2, 17, length), (17, 4), (17,)),
    chunks: lambda length: leaves(
        4, (2, length, 4, 5), (2, length, 4), (4,), (2, length, 2, 3), (2, length, 2, 3), (4,)
    ),
}

RUNS = [
    *[(call, backend) for call in (scan, scan_of_a_grid) for backend in SCAN],
    *[(block, backend) for backend in BOTH],
    *[(convolution, backend) for backend in CONVOLUTION],
    (chunks, "torch"),
]


def compare(
    call: Callable[..., tuple[Tensor, ...]], backend: str, compiler: str, lengths: tuple[int, ...]
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend=compiler)
    for length in lengths:
        inputs = CALLS[call](length)
        expected = call(*inputs, backend=backend)
        found = compiled(*inputs, backend=backend)
        pairs = list(zip(found, expected, strict=True))
        pairs += zip(
            torch.autograd.grad(found, inputs, cotangents(found)),
            torch.autograd.grad(expected, inputs, cotangents(found)),
            strict=True,
        )
        for first, second in pairs:
            assert error(first, second) <= 1e-6


@pytest.mark.parametrize(("call", "backend"), RUNS)
def test_torch_compile_gives_the_same(
    call: Callable[..., tuple[Tensor, ...]], backend: str
) -> None:
    compare(call, backend, "aot_eager", (70, 35))


@pytest.mark.slow
@pytest.mark.parametrize(("call", "backend"), RUNS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_gives_the_same(call: Callable[..., tuple[Tensor, ...]], backend: str) -> None:
    # One length: a second one is compiled anew, which takes a C++ compiler minutes.
    compare(call, backend, "inductor", (35,))


DIFFERENTIABLE = [(call, backend) for call, backend in RUNS if call is not chunks]


@pytest.mark.parametrize(("call", "backend"), DIFFERENTIABLE)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_derivatives_it_lacks_are_refused_and_never_zero(
    call: Callable[..., tuple[Tensor, ...]], backend: str
) -> None:
    """torch would answer a forward-mode derivative of an unknown operator with zeros."""
    first, *others = CALLS[call](35)

    def of_first(tensor: Tensor) -> Tensor:
        return call(tensor, *others, backend=backend)[0]

    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        torch.func.jvp(of_first, (first.detach(),), (first.detach(),))
    (grad,) = torch.autograd.grad(of_first(first).square().sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match=r"can't be differentiated again|no autograd formula"):
        torch.autograd.grad(grad.square().sum(), first)


@pytest.mark.parametrize("backend", SCAN)
def test_vmap_is_a_loop_over_calls(backend: str) -> None:
    first, *others = (each.detach() for each in scan_leaves(35))
    both = torch.vmap(lambda u: scan(u, *others, backend=backend))(torch.stack((first, first * 2)))
    for many, one in zip(both, scan(first * 2, *others, backend=backend), strict=True):
        assert torch.equal(many[1], one)


HIDDEN = """
import sys
for name in ("numba", "triton"):
    sys.modules[name] = None
import torch
import medplat_kernels as mk
u = torch.rand(1, 8, 70, requires_grad=True)
out = mk.selective_scan_fn(u, u, -torch.rand(8, 4), torch.rand(1, 4, 70), torch.rand(1, 4, 70))
out.sum().backward()
mk.causal_conv1d_fn(u, torch.rand(8, 4)).sum().backward()
assert mk.last_backend("selective_scan") == mk.last_backend("causal_conv1d") == "torch"
print(mk.explain("cpu")["selective_scan"])
"""


def test_without_numba_and_triton_it_runs_on_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'torch': 'yes" in done.stdout


POISONED = """
import torch
from medplat_kernels import selective_scan_fn
from medplat_kernels.selective_scan.reference import selective_scan_reference
torch.manual_seed(0)
shapes = [(2, 40, 200), (2, 40, 200), (40, 6), (2, 2, 6, 200), (2, 2, 6, 200), (40,), (2, 40, 200)]
for backend in {backends}:
    known = [torch.randn(s, dtype=torch.float64) for s in shapes]
    known[2] = -known[2].abs()
    known = [each.float().double().requires_grad_() for each in known]
    given = [each.detach().float().requires_grad_() for each in known]
    expected, _ = selective_scan_reference(*known, None, True)
    found = selective_scan_fn(*given, None, True, backend=backend)
    pairs = [(found, expected), *zip(torch.autograd.grad(found.sum(), given),
             torch.autograd.grad(expected.sum(), known))]
    for one, two in pairs:
        assert (one - two).norm() <= 1e-5 * two.norm(), backend
"""


@pytest.mark.slow
def test_results_do_not_depend_on_what_malloc_hands_out() -> None:
    """glibc fills what it allocates with 0xfe, -1.7e38 as a float; the compiled scratch too."""
    code = POISONED.format(backends=cpu_backends("selective_scan"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MALLOC_PERTURB_": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
