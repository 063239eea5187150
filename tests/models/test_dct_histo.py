"""dct_histo: the low-pass identities of its attention branch, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from scipy.fft import dctn, idctn

from medplat.errors import DataError
from medplat.models import dct_histo
from medplat.models.dct_histo import Block, Config
from medplat.types import Task

FLAT = Task("classify", 2, 3, 2)


def block(kept: int, dims: int = 2, operator: str = "on") -> Block:
    torch.manual_seed(0)
    options = {"channels": (16,), "depths": (1,), "kept": (kept,), "heads": (2,)}
    return Block(Config.model_validate({**options, "operator": operator}), dims, 0).eval()


def silence(part: Block) -> Block:
    """Attention and feed-forward part add nothing."""
    for layer in (part.attention.attend.proj, part.attention.mlp[2]):  # type: ignore[union-attr, index]
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return part


@pytest.mark.parametrize("shape", [(9, 9), (8, 13), (5, 7, 6)])
def test_a_silent_branch_is_scipys_low_pass(shape: tuple[int, ...]) -> None:
    kept = 4
    part = silence(block(kept, len(shape)))
    x = torch.randn(2, 16, *shape)
    axes = tuple(range(2, 2 + len(shape)))
    spectrum = dctn(x.double().numpy(), type=2, norm="ortho", axes=axes)
    for axis in axes:
        spectrum.swapaxes(0, axis)[kept:] = 0
    wanted = torch.from_numpy(idctn(spectrum, type=2, norm="ortho", axes=axes))
    with torch.no_grad():
        low = part.low(x)
        torch.testing.assert_close(low.double(), wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(part.low(low), low, atol=1e-5, rtol=0)
        twin = block(kept, len(shape), operator="off")
        torch.testing.assert_close(twin.low(x), low, atol=1e-6, rtol=0)


def test_all_frequencies_give_the_map_back() -> None:
    x = torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(silence(block(9)).low(x), x, atol=1e-5, rtol=0)


def test_a_constant_map_is_its_first_token() -> None:
    part, seen = block(4), []
    part.attention.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        part.low(torch.full((1, 16, 8, 8), 0.5))
    tokens = seen[0].flatten(2)
    torch.testing.assert_close(tokens[..., 0], torch.full((1, 16), 0.5 * 8))
    assert tokens[..., 1:].abs().max() < 1e-6


def test_attention_works_on_the_kept_tokens_alone() -> None:
    """Its cost is set by the kept frequencies, not by the map."""
    part, seen = block(3), []
    part.attention.norm1.register_forward_pre_hook(lambda module, given: seen.append(given[0]))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        part.low(torch.randn(1, 16, 8, 8))
        part.low(torch.randn(1, 16, 31, 17))
    assert [tuple(one.shape) for one in seen] == [(1, 9, 16)] * 2


def test_the_published_size_and_others_run() -> None:
    network = dct_histo.build(
        Config.model_validate({**dct_histo.SMALL, "kept": (14, 7)}), FLAT
    ).eval()
    with torch.no_grad():
        for size in ((224, 224), (57, 90)):
            assert network(torch.randn(1, 3, *size)).shape == (1, 2)
        with pytest.raises(DataError, match="14 frequencies in stage 1, whose map is 13x25"):
            network(torch.randn(1, 3, 52, 100))
        with pytest.raises(DataError, match="7 frequencies in stage 2, whose map is 7x6"):
            dct_histo.build(Config(**dct_histo.SMALL | {"kept": (4, 7)}), FLAT)(
                torch.randn(1, 3, 57, 52)
            )


def test_settings_that_do_not_fit() -> None:
    for wrong, why in (
        ({"kept": (4,)}, "kept needs 2 positive numbers"),
        ({"depths": (1, 0)}, "depths needs 2 positive numbers"),
        ({"heads": (3, 4)}, "divided by 3 heads"),
    ):
        with pytest.raises(ValidationError, match=why):
            Config.model_validate({**dct_histo.SMALL, **wrong})
