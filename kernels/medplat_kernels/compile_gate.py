"""Compiles Triton kernels for GPUs that are not there and reads what the machine code needs.

Triton's compiler and NVIDIA's assembler and disassembler come with the triton wheel and run on any
x86 Linux. So registers, spills and instructions of every kernel are known, and limited, on a
machine without a GPU; speed and correctness on a GPU are not.

A module with Triton kernels has a name that ends in `triton_kernels` (as a rule
`medplat_kernels.<operator>.triton_kernels`, which `<operator>/triton.py` imports when it launches)
and exports `SPECIMENS`, a tuple of `Specimen`: its kernels as production launches them, with their
limits. `specimens()` finds them all, `measure` compiles one for one architecture, `faults` says
which limits it breaks.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import medplat_kernels

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Specimen:
    """One specialisation of a kernel, as production launches it, and its limits.

    Attributes:
        name: Operator, pass and what is special: "selective_scan forward bdl fp32 N=16".
        kernel: The `triton.jit` function.
        arguments: Type of each run-time argument by name: "*fp32", "*bf16", "i32", "fp32";
            a tuple of them for an argument that is a tuple. An argument not named here or in
            `constants` is None, as an absent tensor is.
        constants: Value of each `tl.constexpr` argument by name.
        unaligned: Run-time arguments that are not multiples of 16 (of 16 bytes, for pointers);
            all others are, and are compiled so.
        options: Compiler options of the launch: num_warps, maxnreg, num_stages.
        registers: Most registers a thread.
        states: States that one turn of the time loop updates, 0 where nothing is counted. Each
            takes one exponential, by which the loop is found.
        instructions: Most instructions a state in the time loop.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[str, Any] = field(default_factory=dict)
    unaligned: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=lambda: {"num_warps": 1})
    registers: int = 128
    states: int = 0
    instructions: float = 14.0


@dataclass(frozen=True)
class Measure:
    """What the machine code of a specimen needs.

    Attributes:
        registers: Registers a thread.
        spilled: Bytes of local memory a thread: spilled registers, and arrays that did not fit.
        per_state: Instructions a state inside the time loop; 0 where the specimen counts none.
    """

    registers: int
    spilled: int
    per_state: float


def specimens() -> tuple[Specimen, ...]:
    """The specimens of every operator that has Triton kernels."""
    found: list[Specimen] = []
    for module in pkgutil.walk_packages(medplat_kernels.__path__, "medplat_kernels."):
        if module.name.endswith("triton_kernels"):
            found.extend(importlib.import_module(module.name).SPECIMENS)
    return tuple(found)


def measure(specimen: Specimen, architecture: int) -> Measure:
    """Compile for `sm_<architecture>` and read registers, spills and, where asked, the time loop.

    Raises:
        RuntimeError: The disassembler fails.
    """
    code = _compile(specimen, architecture)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(code)
        usage = _disassembler("-res-usage", cubin)
        listing = _disassembler("-sass", cubin) if specimen.states else ""
    used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if used is None:
        raise RuntimeError(f"cuobjdump names no registers of {specimen.name}: {usage[:200]}")
    registers, stack, local = map(int, used.groups())
    inside = _time_loop(_instructions(listing), specimen.states)
    return Measure(registers, stack + local, inside / max(specimen.states, 1))


def faults(specimen: Specimen, needs: Measure) -> list[str]:
    """The limits that a specimen breaks, one sentence each."""
    broken = []
    if needs.spilled:
        broken.append(f"{specimen.name}: {needs.spilled} bytes are spilled")
    if needs.registers > specimen.registers:
        broken.append(f"{specimen.name}: {needs.registers} registers, {specimen.registers} allowed")
    if specimen.states and not 0 < needs.per_state <= specimen.instructions:
        broken.append(
            f"{specimen.name}: {needs.per_state:.1f} instructions a state, "
            f"{specimen.instructions} allowed"
        )
    return broken


def _compile(specimen: Specimen, architecture: int) -> bytes:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = specimen.kernel.arg_names
    absent = {n: None for n in names if n not in {*specimen.arguments, *specimen.constants}}
    source = ASTSource(
        fn=specimen.kernel,
        signature={n: specimen.arguments.get(n, "constexpr") for n in names},
        constexprs={**specimen.constants, **absent},
        attrs={
            path: [["tt.divisibility", 16]]
            for place, n in enumerate(names)
            if specimen.arguments.get(n, "fp32") != "fp32" and n not in specimen.unaligned
            for path in _paths(place, specimen.arguments[n])
        },
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={**specimen.options, "enable_fp_fusion": True},
    )
    code: bytes = compiled.asm["cubin"]
    return code


def _paths(place: int, kind: str | tuple[str, ...]) -> list[tuple[int, ...]]:
    """How Triton names an argument, or each part of one that is a tuple."""
    return [(place,)] if isinstance(kind, str) else [(place, part) for part in range(len(kind))]


def _disassembler(option: str, cubin: Path) -> str:
    from triton.backends import nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    done = subprocess.run([tool, option, cubin], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cuobjdump {option} failed: {done.stderr.strip()}")
    return done.stdout + done.stderr


def _instructions(listing: str) -> list[tuple[int, str, str]]:
    """(address, name, operands) of each instruction of a `cuobjdump -sass` listing."""
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)([^;/]*);", listing)
    return [(int(address, 16), name, operands) for address, name, operands in lines]


def _time_loop(instructions: list[tuple[int, str, str]], states: int) -> int:
    """Instructions of the shortest loop with at least one exponential a state."""
    lengths = []
    for address, name, operands in instructions:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if not (states and name.startswith("BRA") and target):
            continue
        first = int(target[1], 16)
        body = [each for each in instructions if first <= each[0] <= address]
        if sum(each[1].startswith("MUFU.EX2") for each in body) >= states:
            lengths.append(len(body))
    return min(lengths, default=0)
