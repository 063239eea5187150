"""Makes `transform_table.json` from the installed MONAI: `make transform-table`.

The table holds every transform that a workflow may name, its arguments and their types, so that a
workflow is checked without importing MONAI. A type is a list of alternatives: "bool", "int",
"number", "text", "word" (a mode), "dtype", "null", "mapping", "any", or {"list": alternatives};
an empty list marks an argument that YAML cannot express (callables, devices, tensors).
"""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")

ALLOWED = (
    # space
    "Affined", "Flipd", "Orientationd", "Resized", "Rotate90d", "Rotated", "Spacingd", "Zoomd",
    # size
    "BorderPadd", "CenterScaleCropd", "CenterSpatialCropd", "CropForegroundd", "DivisiblePadd",
    "ResizeWithPadOrCropd", "SpatialCropd", "SpatialPadd",
    # values
    "AdjustContrastd", "CastToTyped", "ClipIntensityPercentilesd", "EnsureTyped",
    "GaussianSharpend", "GaussianSmoothd", "HistogramNormalized", "MaskIntensityd",
    "MedianSmoothd", "NormalizeIntensityd", "ScaleIntensityRangePercentilesd",
    "ScaleIntensityRanged", "ScaleIntensityd", "ShiftIntensityd", "StdShiftIntensityd",
    "ThresholdIntensityd",
    # random
    "Rand2DElasticd", "Rand3DElasticd", "RandAdjustContrastd", "RandAffined", "RandAxisFlipd",
    "RandBiasFieldd", "RandCoarseDropoutd", "RandCoarseShuffled", "RandFlipd",
    "RandGaussianNoised", "RandGaussianSharpend", "RandGaussianSmoothd", "RandGibbsNoised",
    "RandGridDistortiond", "RandHistogramShiftd", "RandKSpaceSpikeNoised", "RandRicianNoised",
    "RandRotate90d", "RandRotated", "RandScaleCropd", "RandScaleIntensityFixedMeand",
    "RandScaleIntensityd", "RandShiftIntensityd", "RandSimulateLowResolutiond",
    "RandSmoothDeformd", "RandSmoothFieldAdjustContrastd", "RandSmoothFieldAdjustIntensityd",
    "RandSpatialCropd", "RandStdShiftIntensityd", "RandZoomd",
)  # fmt: skip

_READS = "medplat reads and writes the files itself, channel first"
_CODE = "it takes code, and a workflow holds none"
_CHANNELS = "the channels are the workflow's inputs"
_PATCHES = "patches are cut by train.patch_size, train.patches_per_case and train.foreground"
_LABELS = "labels are mapped by task.labels"
REFUSED = {
    **dict.fromkeys(
        ("LoadImaged", "SaveImaged", "WriteFileMappingd", "SaveClassificationd", "AsChannelLastd",
         "EnsureChannelFirstd", "ToTensord", "ToNumpyd", "ToMetaTensord", "FromMetaTensord",
         "ToDeviced"),
        _READS,
    ),
    **dict.fromkeys(
        ("Lambdad", "RandLambdad", "Ensembled", "TorchVisiond", "RandTorchVisiond", "TorchIOd",
         "RandTorchIOd", "CuCIMd", "RandCuCIMd", "Invertd", "Cropd", "RandCropd", "Padd"),
        _CODE,
    ),
    **dict.fromkeys(
        ("AddCoordinateChannelsd", "ConcatItemsd", "CopyItemsd", "DeleteItemsd", "RepeatChanneld",
         "RemoveRepeatedChanneld", "SelectItemsd", "SplitDimd", "SqueezeDimd", "Transposed"),
        _CHANNELS,
    ),
    **dict.fromkeys(
        ("RandCropByPosNegLabeld", "RandCropByLabelClassesd", "RandSpatialCropSamplesd",
         "RandWeightedCropd", "GridPatchd", "RandGridPatchd", "GridSplitd"),
        _PATCHES,
    ),
    **dict.fromkeys(
        ("MapLabelValued", "ConvertToMultiChannelBasedOnBratsClassesd", "LabelFilterd",
         "LabelToMaskd", "AsDiscreted"),
        _LABELS,
    ),
}  # fmt: skip

_NAMED: dict[str, list[Any]] = {
    "bool": ["bool"],
    "int": ["int"],
    "float": ["number"],
    "str": ["text"],
    "None": ["null"],
    "dict": ["mapping"],
    "InterpolateMode": ["word"],
    "KeysCollection": ["text", {"list": ["text"]}],
    "SequenceStr": ["text", {"list": ["text"]}],
    "DtypeLike": ["dtype", "null"],
    "torch.dtype": ["dtype"],
    "np.dtype": ["dtype"],
    "IndexSelection": ["int", {"list": ["int"]}],
}
_SEQUENCES = ("Sequence", "Iterable", "tuple", "list")


def generate() -> dict[str, Any]:
    """The table of the installed MONAI."""
    import monai
    import monai.transforms
    from monai.utils import enums

    kinds = ("GridSampleMode", "InterpolateMode", "NumpyPadMode", "GridSamplePadMode",
             "NdimageMode", "PytorchPadMode")  # fmt: skip
    words = {str(word.value) for kind in kinds for word in getattr(enums, kind)}
    found = {name: _transform(getattr(monai.transforms, name)) for name in sorted(ALLOWED)}
    return {"monai": monai.__version__, "words": sorted(words), "transforms": found}


def write() -> None:
    """Write the table beside this file."""
    FILE.write_text(text(generate()), encoding="utf-8")


def text(table: dict[str, Any]) -> str:
    """The table as JSON, one argument a line."""
    lines = []
    for name, entry in table["transforms"].items():
        arguments = ",\n".join(
            f"   {json.dumps(key)}: {json.dumps(value)}"
            for key, value in entry["arguments"].items()
        )
        random = json.dumps(entry["random"])
        lines.append(f'  "{name}": {{"random": {random}, "arguments": {{\n{arguments}}}}}')
    body = ",\n".join(lines)
    words = json.dumps(table["words"])
    return f'{{"monai": "{table["monai"]}",\n "words": {words},\n "transforms": {{\n{body}}}\n}}\n'


def _transform(cls: Any) -> dict[str, Any]:
    from monai.transforms import Randomizable

    arguments: dict[str, Any] = {}
    for one in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        required = one.default is one.empty
        arguments[one.name] = {"type": _type(one, cls), "required": required}
    return {"random": issubclass(cls, Randomizable), "arguments": arguments}


def _type(parameter: inspect.Parameter, cls: Any) -> list[Any]:
    if parameter.annotation is parameter.empty:
        return ["any"]
    found = _alternatives(ast.parse(str(parameter.annotation), mode="eval").body)
    if "mode" in parameter.name and "text" in found:
        # A mode is a word or the order of a spline.
        found = ["word", "int", {"list": ["word", "int"]}]
    return _unique(found)


def _alternatives(node: ast.expr) -> list[Any]:
    """Alternatives of an annotation; what YAML cannot express gives none."""
    if isinstance(node, ast.BinOp):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    if isinstance(node, ast.Subscript):
        if ast.unparse(node.value) not in _SEQUENCES:
            return ["mapping"] if ast.unparse(node.value) == "dict" else []
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        kinds = _unique([kind for one in inside for kind in _alternatives(one)])
        return [{"list": kinds}] if kinds else []
    name = ast.unparse(node)
    return [{"list": ["any"]}] if name in _SEQUENCES else list(_NAMED.get(name, ()))


def _unique(kinds: list[Any]) -> list[Any]:
    result: list[Any] = []
    for kind in kinds:
        if kind not in result:
            result.append(kind)
    return [] if result == ["null"] else result
