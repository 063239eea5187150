"""Side-by-side timing in one process: variants take turns, and ratios are what is printed.

A figure is shown only when the outputs of all variants agree. The order of each round is reversed
from the round before (ABBA), so that a machine that slows down slows all variants alike. The first
variant is ours and the yardstick: a ratio of 3 says that a variant takes three times as long.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import tables
from tables import Measured, Row

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LONG_ENOUGH_S = 0.02  # a turn of a variant repeats its call until it lasts this long
Timer = Callable[[Callable[[], Any], int], tuple[float, float]]


@dataclass(frozen=True)
class Case:
    """One shape of one operator, and everything that computes it.

    Attributes:
        title: Operator, shape, dtype.
        variants: Name to a call without arguments; the first is ours.
        same: Whether two outputs agree.
        goals: Variant to the least ratio that is promised for it.
        operator: Whose `last_backend` is noted.
        threads: Of torch, and so of our own pool.
        memory: Variant to the most MiB that it may add to the process, None to measure only.
        warm: Run before memory is measured, so that compilers are not counted.
    """

    title: str
    variants: Mapping[str, Callable[[], Any]]
    same: Callable[[Any, Any], bool]
    goals: Mapping[str, float] = field(default_factory=dict)
    operator: str = ""
    threads: int = 1
    rounds: int = 7
    memory: Mapping[str, float | None] = field(default_factory=dict)
    warm: Callable[[], Any] | None = None


Cases = Mapping[str, Callable[[str], Case]]


def close(tolerance: float) -> Callable[[Any, Any], bool]:
    """Compare outputs, tensors or (nested) tuples of them, by the norm of their difference."""
    import torch

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, tuple | list):
            return len(one) == len(other) and all(map(same, one, other))
        a, b = one.detach().double(), other.detach().double()
        if a.shape != b.shape:
            return False
        return bool(torch.linalg.vector_norm(a - b) <= tolerance * torch.linalg.vector_norm(b))

    return same


def gradients(run: Callable[..., Any], *tensors: Any) -> Callable[[], Any]:
    """A call that runs `run(*tensors)` forward and backward and returns output and gradients.

    The gradient that comes in is drawn once: all ones would hide errors that cancel.
    """
    import torch

    wanted = [one for one in tensors if one is not None and one.requires_grad]
    drawn: dict[str, torch.Tensor] = {}

    def once() -> Any:
        out = run(*tensors)
        if "grad" not in drawn:
            generator = torch.Generator().manual_seed(7)
            drawn["grad"] = torch.randn(out.shape, generator=generator).to(out)
        return (out.detach(), *torch.autograd.grad(out, wanted, drawn["grad"]))

    return once


def wall(call: Callable[[], Any], repeat: int) -> tuple[float, float]:
    """Seconds of one call on the clock and in CPU time, the mean of `repeat`."""
    started, used = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - started) / repeat, (time.process_time() - used) / repeat


def compare(
    variants: Mapping[str, Callable[[], Any]],
    same: Callable[[Any, Any], bool],
    rounds: int = 7,
    timer: Timer = wall,
) -> Measured:
    """Time `variants` in turns; the first one is the yardstick of the ratios.

    Args:
        variants: Name to a call without arguments that does the work and returns its output.
        same: Whether two outputs agree.
        rounds: Rounds measured, after one that warms up and checks the outputs.
        timer: Seconds of a call.

    Raises:
        AssertionError: Outputs differ, so no figure would mean anything.
    """
    names = list(variants)
    outputs = {name: variants[name]() for name in names}
    for name in names[1:]:
        if not same(outputs[name], outputs[names[0]]):
            raise AssertionError(f"{name} differs from {names[0]}: no figure would mean anything")
    del outputs
    repeat = {name: _repeats(timer(variants[name], 1)[0]) for name in names}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with machine.listening() as noise:
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                taken[name].append(timer(variants[name], repeat[name]))
            noise.copy()
    base = np.array(taken[names[0]])[:, 0]
    return Measured([_row(name, np.array(taken[name]), base) for name in names], noise)


def _repeats(seconds: float) -> int:
    return int(np.clip(np.ceil(LONG_ENOUGH_S / max(seconds, 1e-6)), 1, 1000))


def _row(name: str, taken: np.ndarray[Any, Any], base: np.ndarray[Any, Any]) -> Row:
    low, middle, high = np.percentile(taken[:, 0] / base, [25, 50, 75])
    return Row(
        name=name,
        wall_s=float(np.median(taken[:, 0])),
        min_s=float(taken[:, 0].min()),
        cpu_s=float(np.median(taken[:, 1])),
        ratio=float(middle),
        ratio_low=float(low),
        ratio_high=float(high),
    )


def run(operator: str, cases: Cases, device: str = "cpu") -> str:
    """Measure all cases of an operator; writes `results/<operator>.json`, returns the tables."""
    records = [_measure(operator, key, make(device), device) for key, make in cases.items()]
    suffix = "" if device == "cpu" else f"_{device}"
    return tables.write(RESULTS / f"{operator}{suffix}.json", records, machine.describe(device))


def _measure(script: str, key: str, case: Case, device: str) -> dict[str, Any]:
    sys.stderr.write(f"{case.title} ...\n")
    with threads(case.threads):
        measured = (
            _on_cuda(case) if device == "cuda" else compare(case.variants, case.same, case.rounds)
        )
    if device == "cpu":
        for at, row in enumerate(measured.rows):
            if row.name in case.memory:
                measured.rows[at] = replace(row, peak_mib=peak(script, key, row.name))
    return tables.record(
        case.title,
        measured,
        goals=case.goals,
        memory={name: most for name, most in case.memory.items() if most is not None},
        threads=case.threads,
        backend=_backend(case),
    )


def _on_cuda(case: Case) -> Measured:
    """All variants as a user calls them, then as CUDA graphs those that can be captured."""
    import cuda_timing

    eager = compare(case.variants, case.same, case.rounds, cuda_timing.eager)
    captured = {
        f"{name} (graph)": call
        for name, call in case.variants.items()
        if cuda_timing.can_capture(call)
    }
    if captured:
        graphs = compare(captured, case.same, case.rounds, cuda_timing.graph)
        eager.rows.extend(graphs.rows)
    return eager


def _backend(case: Case) -> str:
    if not case.operator:
        return ""
    from medplat_kernels import dispatch

    next(iter(case.variants.values()))()  # peers may have run the operator on another backend
    return dispatch.last_backend(case.operator) or ""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch, and what follows its number of threads, use `count` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak(script: str, key: str, variant: str) -> float | None:
    """MiB that one call of a variant adds to a fresh process at most; None where not known."""
    command = [sys.executable, str(HERE), "--peak", script, key, variant]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout) if done.stdout.strip() else None


def peak_here(case: Case, variant: str) -> str:
    """What `peak` asks the child for: the high-water mark of memory over one call, in MiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return ""
    with threads(case.threads):
        (case.warm or (lambda: None))()
        Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is in use now
        before = _status(status, "VmRSS")
        kept = case.variants[variant]()
        del kept
    return f"{_status(status, 'VmHWM') - before:.1f}"


def _status(file: Path, key: str) -> float:
    line = next(one for one in file.read_text().splitlines() if one.startswith(key + ":"))
    return int(line.split()[1]) / 1024


def report(title: str, measured: Measured, out: Path | None = None, **more: Any) -> str:
    """The table of one comparison as text; also written to `out` as JSON with the machine."""
    record = tables.record(title, measured, **more)
    if out:
        return tables.write(out, [record], machine.describe())
    return tables.text(record)
