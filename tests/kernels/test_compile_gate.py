"""Registers, spills and instructions of every Triton kernel, compiled for GPUs that are not here.

One specimen of every kernel is compiled for every architecture; the others in the slow tests.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

import medplat_kernels
from medplat_kernels.compile_gate import ARCHITECTURES, Specimen, faults, measure, specimens


def chosen(fast: bool) -> list[pytest.param]:
    seen: set[object] = set()
    found = []
    for specimen in specimens():
        first = specimen.kernel not in seen
        seen.add(specimen.kernel)
        if first == fast:
            for architecture in ARCHITECTURES:
                name = f"sm_{architecture} {specimen.name}"
                found.append(pytest.param(specimen, architecture, id=name))
    return found


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(("specimen", "architecture"), chosen(fast=True))
def test_a_kernel_fits(specimen: Specimen, architecture: int, own_cache: None) -> None:
    assert faults(specimen, measure(specimen, architecture)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("specimen", "architecture"), chosen(fast=False))
def test_every_specimen_fits(specimen: Specimen, architecture: int, own_cache: None) -> None:
    assert faults(specimen, measure(specimen, architecture)) == []


def test_every_kernel_has_a_specimen() -> None:
    root = Path(medplat_kernels.__path__[0])
    named = {
        name
        for file in root.rglob("*triton*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.MULTILINE)
    }
    assert named == {specimen.kernel.__name__ for specimen in specimens()}


def test_a_broken_limit_is_a_fault(own_cache: None) -> None:
    chain = next(each for each in specimens() if " chain " in each.name)
    needs = measure(chain, 90)
    tight = dataclasses.replace(chain, registers=needs.registers - 1)
    assert len(faults(tight, needs)) == 1
    assert len(faults(chain, dataclasses.replace(needs, spilled=8))) == 1
    counted = dataclasses.replace(chain, states=16)
    assert len(faults(counted, dataclasses.replace(needs, per_state=14.1))) == 1
    assert len(faults(counted, dataclasses.replace(needs, per_state=0))) == 1
