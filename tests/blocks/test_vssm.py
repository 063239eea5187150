"""Patches, merging and expanding voxel by voxel; the chances of stochastic depth."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medplat.blocks import vssm


def test_merging_takes_the_phases_column_after_column():
    merging = vssm.PatchMerging(3)
    x = torch.randn(2, 4, 6, 3)
    phases = [(0, 0), (1, 0), (0, 1), (1, 1)]
    for row in range(2):
        for column in range(3):
            four = torch.cat([x[:, 2 * row + i, 2 * column + j] for i, j in phases], -1)
            wanted = F.layer_norm(four, (12,)) @ merging.reduction.weight.T
            assert torch.allclose(merging(x)[:, row, column], wanted, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_expanding_lays_out_rows_then_columns_then_channels(factor):
    expand = vssm.PatchExpand(6, factor**2 * 5, factor)
    x = torch.randn(2, 3, 4, 6)
    found = expand(x)
    assert found.shape == (2, 3 * factor, 4 * factor, 5)
    for row in range(factor):
        for column in range(factor):
            first = (row * factor + column) * 5
            wanted = F.layer_norm(x @ expand.expand.weight[first : first + 5].T, (5,))
            assert torch.allclose(found[:, row::factor, column::factor], wanted, atol=1e-6)


def test_encoder_keeps_each_stage():
    encoder = vssm.VssmEncoder(2, 4, (1, 2, 1), patch=2, state=2)
    shapes = [tuple(one.shape) for one in encoder(torch.randn(1, 2, 16, 24))]
    assert shapes == [(1, 8, 12, 4), (1, 4, 6, 8), (1, 2, 3, 16)]


def test_chances_rise_to_the_last_block():
    assert vssm.rising(0.2, (2, 1, 2)) == [[0.0, 0.05], [0.1], pytest.approx([0.15, 0.2])]
    assert vssm.rising(0.3, (1,)) == [[0.0]]
    encoder = vssm.VssmEncoder(1, 4, (1, 2), patch=2, state=2, drop_path=0.2)
    chances = [
        getattr(block.drop_path, "drop_prob", 0.0)
        for stage in encoder.layers
        for block in stage.blocks
    ]
    assert chances == pytest.approx([0.0, 0.1, 0.2])


def test_initialise_leaves_the_step_sizes_alone():
    encoder = vssm.VssmEncoder(1, 8, (1,), patch=2, state=2)
    block = encoder.layers[0].blocks[0].self_attention
    before = [one.clone() for one in (block.dt_projs_bias, block.dt_projs_weight, block.A_logs)]
    vssm.initialise(encoder)
    after = (block.dt_projs_bias, block.dt_projs_weight, block.A_logs)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert block.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
