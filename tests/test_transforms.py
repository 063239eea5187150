"""The transform table against the installed MONAI, and lists checked against the table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from medplat import transform_table, transforms
from medplat.errors import WorkflowError


def one(name: str, **arguments: Any) -> list[str]:
    return [found.text for found in transforms.check([{name: arguments}], ("image", "label"))]


def test_the_table_is_that_of_the_installed_monai() -> None:
    stored = transform_table.FILE.read_text(encoding="utf-8")
    assert stored == transform_table.text(transform_table.generate()), "run `make transform-table`"


def test_allowed_and_refused_are_transforms_of_monai_and_do_not_overlap() -> None:
    import monai.transforms

    names = [*transform_table.ALLOWED, *transform_table.REFUSED]
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(monai.transforms, name)] == []


def test_no_allowed_argument_takes_code() -> None:
    table = json.loads(transform_table.FILE.read_text(encoding="utf-8"))["transforms"]
    codelike = ("func", "fn", "callable", "reader", "writer", "device")
    for name, entry in table.items():
        for argument, value in entry["arguments"].items():
            if any(word in argument for word in codelike):
                assert value["type"] == [], f"{name}.{argument}"


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("Spacingd", {"keys": "image", "pixdim": [1, 1, 1]}, []),
        ("Spacingd", {"keys": ["image"], "pixdim": 1.5, "mode": 3}, []),
        ("Spacingd", {"keys": "image"}, ["needs the argument pixdim"]),
        ("Spacingd", {"keys": "image", "pixdim": "1"}, [
            "must be a list of (a number) or a number, is '1'"]),
        ("Spacingd", {"keys": "image", "pixdim": [1, "1"]}, [
            "must be a list of (a number) or a number, is [1, '1']"]),
        ("Spacingd", {"keys": "image", "pixdim": 1, "mode": "bilnear"}, [
            "must be a mode or a whole number or a list of (a mode or a whole number), is"
            " 'bilnear'. Did you mean 'bilinear'?"]),
        ("Spacingd", {"keys": "image", "pixdim": 1, "dtype": "float23"}, [
            "must be a list of (a number type such as float32 or null) or a number type such as"
            " float32 or null, is 'float23'"]),
        ("Spacingd", {"keys": "image", "pixdim": 1, "diagonal": 1}, [
            "must be true or false, is 1"]),
        ("Spacingd", {"keys": "imge", "pixdim": 1}, [
            "'imge' is not in a case; known are image, label. Did you mean 'image'?"]),
        ("CropForegroundd", {"keys": "image", "source_key": "image", "select_fn": "x"}, [
            "cannot be given in a workflow"]),
        ("Lambdad", {"keys": "image", "func": "x"}, [
            "is not allowed in a workflow: it takes code, and a workflow holds none"]),
        ("LoadImaged", {"keys": "image"}, [
            "is not allowed in a workflow: medplat reads and writes the files itself, channel"
            " first"]),
        ("RandFlip", {}, ["unknown transform. Did you mean 'RandFlipd'?"]),
        ("os.system", {}, ["unknown transform, or not allowed in a workflow"]),
        ("Spacngd", {}, [
            "unknown transform, or not allowed in a workflow. Did you mean 'Spacingd'?"]),
    ],
)  # fmt: skip
def test_arguments_are_checked(name: str, arguments: dict[str, Any], expected: list[str]) -> None:
    assert one(name, **arguments) == expected


def test_compose_is_what_monai_would_do_itself() -> None:
    import monai.transforms
    from monai.data import MetaTensor

    random = np.random.default_rng(0)
    array = torch.from_numpy(random.normal(size=(2, 9, 11, 7)).astype("float32"))
    affine = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    case = {"image": MetaTensor(array, affine=affine)}
    given = (
        {
            "Spacingd": {
                "keys": ["image", "label"],
                "pixdim": [1, 2, 1.5],
                "mode": ["bilinear", "nearest"],
            }
        },
        {"NormalizeIntensityd": {"keys": "image", "channel_wise": True}},
        {"CastToTyped": {"keys": "image", "dtype": "float64"}},
        {"SpatialPadd": {"keys": ["image", "label"], "spatial_size": [24, 8, 16]}},
    )
    found = transforms.compose(given, allow_missing_keys=True)(case)["image"]
    own = monai.transforms.Compose(
        [
            monai.transforms.Spacing(pixdim=(1, 2, 1.5), mode="bilinear"),
            monai.transforms.NormalizeIntensity(channel_wise=True),
            monai.transforms.CastToType(dtype=torch.float64),
            monai.transforms.SpatialPad(spatial_size=(24, 8, 16)),
        ]
    )(case["image"])
    assert found.dtype == torch.float64
    assert torch.equal(found.as_tensor(), own.as_tensor())
    assert torch.equal(found.affine, own.affine)


def test_a_seed_makes_random_transforms_repeat() -> None:
    given = ({"RandGaussianNoised": {"keys": "image", "prob": 1.0}},)
    case = {"image": torch.zeros(1, 5, 5, 5)}
    first, same, other = (transforms.compose(given, seed=n)(case)["image"] for n in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_what_only_monai_can_refuse_names_the_transform() -> None:
    given = ({"BorderPadd": {"keys": ["image", "label"], "spatial_border": 1,
                             "mode": ["constant"] * 3}},)  # fmt: skip
    with pytest.raises(WorkflowError, match="BorderPadd"):
        transforms.compose(given)
    with pytest.raises(WorkflowError, match="not allowed"):
        transforms.compose(({"LoadImaged": {"keys": "image"}},))


REQUIRED: dict[str, Any] = {
    "pixdim": 1.0, "axcodes": "RAS", "angle": 0.1, "zoom": 1.1, "spatial_size": 8, "roi_size": 4,
    "roi_scale": 0.5, "spatial_border": 1, "k": 4, "source_key": "image", "gamma": 1.1,
    "lower": 1, "upper": 99, "b_min": 0, "b_max": 1, "a_min": 0, "a_max": 1, "offset": 1,
    "factor": 0.1, "offsets": 0.1, "factors": 0.1, "threshold": 0.1, "spacing": 4,
    "magnitude_range": [0, 1], "sigma_range": [5, 7], "holes": 1, "prob": 1.0, "rand_size": 4,
    "intensity_range": None, "mask_key": "label", "sigma": 1.0, "radius": 1,
}  # fmt: skip
EXTRA = {
    "SpatialCropd": {"roi_center": [4, 4, 4], "roi_size": [4, 4, 4]},
    "RandSmoothDeformd": {"spatial_size": [9, 8, 10], "rand_size": [4, 4, 4]},
    "RandSmoothFieldAdjustContrastd": {"spatial_size": [9, 8, 10], "rand_size": [4, 4, 4]},
    "RandSmoothFieldAdjustIntensityd": {"spatial_size": [9, 8, 10], "rand_size": [4, 4, 4]},
    "Resized": {"spatial_size": [8, 8, 8]},
    "Orientationd": {"axcodes": "LPS"},
    "Rand2DElasticd": {"spacing": [4, 4]},
    "ClipIntensityPercentilesd": {"lower": 1, "upper": 99},
    "MaskIntensityd": {"mask_key": "label"},
}


@pytest.mark.parametrize("name", transform_table.ALLOWED)
def test_every_allowed_transform_runs_from_yaml_values(name: str) -> None:
    from monai.data import MetaTensor

    table = json.loads(transform_table.FILE.read_text(encoding="utf-8"))["transforms"][name]
    needed = [key for key, value in table["arguments"].items() if value["required"]]
    arguments = {key: "image" if key == "keys" else REQUIRED[key] for key in needed}
    arguments |= EXTRA.get(name, {})
    if "prob" in table["arguments"]:
        arguments["prob"] = 1.0
    assert one(name, **arguments) == []
    shape = (1, 9, 8) if name == "Rand2DElasticd" else (1, 9, 8, 10)
    case = {"image": MetaTensor(torch.rand(shape)), "label": MetaTensor(torch.ones(shape))}
    result = transforms.compose(({name: arguments},), seed=0)(case)
    assert isinstance(result, dict)
    assert torch.isfinite(torch.as_tensor(result["image"])).all()
