"""Parameter integers, names and shapes of the released code of the VMamba family.

Counted on the authors' own classes. A digest is the first 16 hexadecimal digits of the SHA-256 of
`json.dumps` of the sorted [name, shape] pairs: it fixes every name and shape at once.
"""

from __future__ import annotations

import functools
import hashlib
import json

import pytest
import torch

from medplat import registry
from medplat.types import Task

DEEP = {"depths": (2, 2, 9, 2), "depths_up": (2, 9, 2, 2)}
LIGHT = {"channels": 60, "depths": (6,) * 4, "state": 10, "light": True}
S2 = {"version": 2, "state": 1, "depths": (2, 2, 5, 2)}
S1 = {"version": 2, "state": 1, "depths": (2, 2, 8, 2), "expand": 1.0}
S27 = {"depths": (2, 2, 27, 2)}
ISIC, SYNAPSE = Task("segment", 2, 3, 1), Task("segment", 2, 3, 9)
THIRTEEN, SIX = Task("segment", 2, 1, 13), Task("classify", 2, 3, 6)
IMAGENET = Task("classify", 2, 3, 1000)
NOISE, TWO, FOUR = (Task("restore", 2, 3, 3, factor) for factor in (1, 2, 4))

GOLDEN = [
    ("vm_unet", {}, ISIC, 27_427_561, 222, "7283333102d71b66"),
    ("vm_unet", DEEP, ISIC, 44_273_833, 417, "bb5430604f438464"),
    ("vm_unet", DEEP, SYNAPSE, 44_274_033, 417, "0ce20b6f6c53dcd5"),
    ("swin_umamba", {}, THIRTEEN, 59_888_644, 257, "bf86085c8a9e2749"),
    ("swin_umamba_dagger", {}, THIRTEEN, 27_496_948, 312, "a5603dff9b4e5993"),
    ("vmamba", {}, IMAGENET, 22_893_448, 212, "e8ab189f9fecbc0f"),
    ("vmamba", S27, IMAGENET, 44_417_416, 446, None),
    ("vmamba", {**S27, "channels": 128}, IMAGENET, 76_254_056, 446, None),
    ("vmamba", S2, IMAGENET, 30_705_832, 222, "37b109e864d4b2cd"),
    ("vmamba", {**S2, "depths": (2, 2, 15, 2)}, IMAGENET, 50_147_752, 402, None),
    ("vmamba", {**S2, "depths": (2, 2, 15, 2), "channels": 128}, IMAGENET, 88_557_800, 402, None),
    ("vmamba", S1, IMAGENET, 30_249_064, 276, "c302111e210fb0a1"),
    ("vmamba", {**S1, "depths": (2, 2, 20, 2)}, IMAGENET, 49_012_840, 492, None),
    ("vmamba", {**S1, "depths": (2, 2, 20, 2), "channels": 128}, IMAGENET, 86_614_504, 492, None),
    ("medmamba", {}, SIX, 14_457_222, 265, "d171cc975f299bcf"),
    ("medmamba", {"depths": (2, 2, 8, 2)}, SIX, 18_625_158, 365, "a0b37d1edddd0264"),
    ("medmamba", {"depths": (2, 2, 12, 2), "channels": 128}, SIX, 39_864_838, 465,
     "895de16b08932f00"),
    ("mambair", LIGHT, TWO, 905_016, 714, "5f9488a6d1425152"),
    ("mambair", LIGHT, FOUR, 924_492, 714, "1e4edca61aec84e1"),
    ("mambair", {}, NOISE, 15_777_507, 922, "a77a57a9c80b2a8a"),
    ("mambair", {"expand": 2.0}, TWO, 20_421_863, 926, "2d07deb321ffec60"),
]  # fmt: skip

# The same networks with the recurrence off, by arithmetic from the shapes above.
TWINS = [
    ("vm_unet", {}, ISIC, 22_037_737),
    ("vm_unet", DEEP, ISIC, 34_621_609),
    ("vm_unet", DEEP, SYNAPSE, 34_621_809),
    ("swin_umamba", {}, THIRTEEN, 55_062_532),
    ("swin_umamba_dagger", {}, THIRTEEN, 21_746_164),
    ("medmamba", {}, SIX, 13_262_214),
    ("medmamba", {"depths": (2, 2, 8, 2)}, SIX, 16_975_494),
    ("medmamba", {"depths": (2, 2, 12, 2), "channels": 128}, SIX, 36_721_158),
    ("mambair", LIGHT, TWO, 628_536),
    ("mambair", {}, NOISE, 13_475_811),
    ("mambair", {"expand": 2.0}, TWO, 16_585_703),
]

# Configurations whose names and shapes are written out in specs/mamba_keys.json.
WRITTEN_OUT = {
    "vm_unet_isic": ("vm_unet", {}, ISIC),
    "vmamba_v0_tiny": ("vmamba", {}, IMAGENET),
    "swin_umamba": ("swin_umamba", {}, THIRTEEN),
    "swin_umamba_dagger": ("swin_umamba_dagger", {}, THIRTEEN),
    "medmamba_t": ("medmamba", {}, SIX),
    "mambair_light_x2": ("mambair", LIGHT, TWO),
}


def shapes(plugin: str, options: dict, task: Task) -> dict[str, list[int]]:
    return built(plugin, json.dumps(options), task)


@functools.cache
def built(plugin: str, options: str, task: Task) -> dict[str, list[int]]:
    module = registry.model(plugin)
    with torch.device("meta"):
        network = module.build(module.Config.model_validate_json(options), task)
    return {name: list(one.shape) for name, one in network.named_parameters()}


def count(named: dict[str, list[int]]) -> int:
    return sum(torch.Size(shape).numel() for shape in named.values())


@pytest.mark.parametrize(("plugin", "options", "task", "parameters", "tensors", "digest"), GOLDEN)
def test_golden(plugin, options, task, parameters, tensors, digest):
    named = shapes(plugin, options, task)
    assert (count(named), len(named)) == (parameters, tensors)
    text = json.dumps([[name, named[name]] for name in sorted(named)])
    found = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest is None or found == digest


@pytest.mark.parametrize(("plugin", "options", "task", "parameters"), TWINS)
def test_twin(plugin, options, task, parameters):
    on, off = shapes(plugin, options, task), shapes(plugin, {**options, "ssm": "off"}, task)
    assert count(off) == parameters
    gone = {name.rpartition(".")[2] for name in on.keys() - off.keys()}
    assert gone == {"x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"}
    assert all(off[name] == on[name] for name in off)


@pytest.mark.parametrize("configuration", WRITTEN_OUT)
def test_every_name_and_shape(configuration, realdata_path):
    path = realdata_path.parent / "specs" / "mamba_keys.json"
    if not path.is_file():
        pytest.skip(f"real data not found at {path}")
    wanted = json.loads(path.read_text(encoding="utf-8"))[configuration]["params"]
    assert shapes(*WRITTEN_OUT[configuration]) == wanted
