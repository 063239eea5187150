"""The output of `medplat convert` as a data set: one case a study, its series to choose from.

The workflow's `inputs` choose the series; the label is the segmentation that came with the export.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medplat import manifest, nifti
from medplat.errors import DataError
from medplat.types import Case, Series
from medplat.workflow.schema import Strict

_USABLE = ("converted", "warned")


class Config(Strict):
    """Keys of `dataset:` beside `name` and `split`."""

    root: Path = Field(description="The OUT folder of `medplat convert`.")
    labels: bool = Field(True, description="Take the segmentation of a study as its label.")
    only_labelled: bool = Field(
        False, description="Leave out studies that do not have exactly one segmentation."
    )


def cases(config: Config) -> list[Case]:
    """One case a study that has at least one converted series, sorted by name.

    Raises:
        DataError: The folder holds no manifest of medplat convert, or a file that it names is gone.
    """
    lines = manifest.read_all(config.root)
    if not lines:
        raise DataError(
            f"{config.root} holds no manifest.jsonl with series: run medplat convert first"
        )
    studies: dict[str, list[manifest.Line]] = {}
    for line in lines:
        if line["status"] in _USABLE and line["outputs"]:
            studies.setdefault(line["case"], []).append(line)
    found = [_case(config, name, studies[name]) for name in sorted(studies)]
    return [one for one in found if one.label is not None or not config.only_labelled]


def _case(config: Config, name: str, lines: list[manifest.Line]) -> Case:
    ordered = sorted(lines, key=lambda line: str(line["stack"]))
    labels = [path for line in ordered for path in _paths(config, line, "label")]
    return Case(
        case=name,
        patient=ordered[0]["patient"],
        series=tuple(one for line in ordered for one in _series(_paths(config, line, "volume"))),
        label=labels[0] if config.labels and len(labels) == 1 else None,
        codes=tuple(sorted({code for line in ordered for code in line["codes"]})),
    )


def _paths(config: Config, line: manifest.Line, kind: str) -> list[Path]:
    return [config.root / one["path"] for one in line["outputs"] if one["kind"] == kind]


def _series(paths: list[Path]) -> list[Series]:
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is gone: run medplat convert again")
    return nifti.series_of(paths)
