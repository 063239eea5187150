"""The costs that torch's counter is told, against products counted by hand."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from medplat_kernels import flop_formulas, neighborhood_attention, scale_attention


def test_attention_is_two_products_forward_and_five_backward() -> None:
    q = torch.randn(3, 2, 7, 5, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
        scale_attention(q, q, q).sum().backward()
    assert counter.get_total_flops() == 7 * 2 * (3 * 2 * 7 * 5) * 7


def test_a_query_of_a_neighborhood_pays_for_the_keys_it_sees() -> None:
    with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
        neighborhood_attention(*torch.randn(3, 1, 2, 9, 8, 4).unbind(), 3)
    assert counter.get_total_flops() == 2 * 2 * (2 * 9 * 8 * 4) * 3 * 3


def test_importing_the_package_imports_neither_numba_nor_triton() -> None:
    code = "import sys, medplat_kernels; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numba", "triton", "scipy"}.isdisjoint(done.stdout.split())
