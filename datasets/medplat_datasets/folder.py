"""folder: files side by side in folders, matched by name; for classify, a folder for each class.

`*` stands for the case: `images/*.nii.gz` and `labels/*.nii.gz`, or `*/t1.nii.gz` and
`*/mask.nii.gz`. With `classes: true` the first folder is the class: `*/*.jpg`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medplat.console import warn
from medplat.errors import DataError
from medplat.types import Case, Image
from medplat_datasets._rows import Row, case_problem, chosen, fail, read_rows, split_problem


class Config(BaseModel):
    """Keys of `dataset` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path = Field(description="The folder that the patterns are relative to.")
    images: Mapping[str, str] | str = Field(
        "images/*.nii.gz",
        description="Pattern of the images, `*` for the case; for several inputs name: pattern.",
    )
    labels: str | None = Field(None, description="Pattern of the label maps, `*` for the case.")
    classes: bool = Field(False, description="The first folder is the class (classify).")
    index: str | None = Field(
        None, description="CSV below root: these cases, in this order, with further columns."
    )
    case_column: str = Field("case", description="Column of the index that names the case.")
    patient_column: str = Field("patient", description="Column of the patient, where there is one.")
    target_column: str = Field("target", description="Column of the class, where there is one.")
    split_column: str = Field(
        "split", description="Column with train, validation or test, where there is one."
    )
    where: Mapping[str, str] = Field(
        {}, description="Column of the index to text: only the lines that hold these are cases."
    )
    patient_pattern: str | None = Field(
        None, description="Regular expression on the case; its first group is the patient."
    )

    @field_validator("patient_pattern")
    @classmethod
    def _has_a_group(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if groups < 1:
            raise ValueError("the pattern needs a group in brackets, which is the patient")
        return value

    @model_validator(mode="after")
    def _stars_fit(self) -> Config:
        wanted = 2 if self.classes else 1
        labels = [self.labels] if self.labels else []
        for pattern in [*self.patterns.values(), *labels]:
            if pattern.count("*") != wanted or "**" in pattern:
                raise ValueError(f"pattern {pattern!r} needs {wanted} '*'")
            if self.classes and not pattern.startswith("*/"):
                raise ValueError(f"pattern {pattern!r} must begin with '*/' when classes is true")
        return self

    @model_validator(mode="after")
    def _where_has_an_index(self) -> Config:
        if self.where and self.index is None:
            raise ValueError("where chooses lines of the index: give index")
        return self

    @property
    def patterns(self) -> dict[str, str]:
        """Input name to pattern; a single pattern is the input `image`."""
        return {"image": self.images} if isinstance(self.images, str) else dict(self.images)


def cases(config: Config) -> list[Case]:
    """The cases in the order of the index, else by name.

    Raises:
        DataError: No images, an image without partner, or a mistake in the index.
    """
    if not config.root.is_dir():
        raise DataError(f"{config.root}: no such folder; set dataset.root")
    images = {name: _files(config.root, text) for name, text in config.patterns.items()}
    labels = _files(config.root, config.labels) if config.labels else None
    names, rows = _order(config, sorted({key for files in images.values() for key in files}))
    fail(_missing(config, names, images, labels))
    return [_case(config, key, images, labels, rows.get(key)) for key in names]


def _files(root: Path, pattern: str) -> dict[str, Path]:
    """Case to file; with two stars the case is `class-name`. Hidden files are not seen."""
    regex = re.compile("([^/]+)".join(re.escape(part) for part in pattern.split("*")))
    found: dict[str, Path] = {}
    for path in sorted(root.glob(pattern)):
        relative = path.relative_to(root).as_posix()
        match = regex.fullmatch(relative)
        if (
            match
            and path.is_file()
            and not any(part.startswith(".") for part in Path(relative).parts)
        ):
            key = "-".join(match.groups())
            if key in found:
                raise DataError(f"{path} and {found[key]} both make case {key!r}; rename one")
            found[key] = path
    return found


def _order(config: Config, names: list[str]) -> tuple[list[str], dict[str, Row]]:
    patterns = ", ".join(config.patterns.values())
    if not names:
        raise DataError(f"{config.root}: no file fits {patterns}; set dataset.images")
    if config.index is None:
        return names, {}
    path = config.root / config.index
    header, rows = read_rows(path)
    fail(_header_problems(config, path, header))
    problems: list[str] = []
    ordered: dict[str, Row] = {}
    for row in chosen(path, header, rows, config.where):
        key = row.cells[config.case_column]
        wrong = [case_problem(key), split_problem(row.cells.get(config.split_column, ""))]
        if key in ordered:
            wrong.append(f"case {key!r} is already in {ordered[key].where}")
        elif key and key not in names:
            wrong.append(f"case {key!r} has no file that fits {patterns}")
        problems += [f"{row.where}: {text}" for text in wrong if text]
        ordered.setdefault(key, row)
    fail(problems)
    if not ordered:
        raise DataError(f"{path}: the index has no lines below its header")
    left = len(set(names) - set(ordered))
    if left and not config.where:
        warn(f"{left} of {len(names)} images are not in {path} and are left out")
    return list(ordered), ordered


def _header_problems(config: Config, path: Path, header: list[str]) -> list[str]:
    columns = {"case": config.case_column, "patient": config.patient_column,
               "target": config.target_column, "split": config.split_column}  # fmt: skip
    return [
        f"{path}:1: no column {column!r} (dataset.{key}_column); there are: {', '.join(header)}"
        for key, column in columns.items()
        if column not in header and (key == "case" or column != key)
    ]


def _missing(
    config: Config,
    names: list[str],
    images: Mapping[str, Mapping[str, Path]],
    labels: Mapping[str, Path] | None,
) -> list[str]:
    patterns = config.patterns
    found = [
        f"{config.root}: case {key!r} has no file that fits {patterns[name]} (input {name})"
        for key in names
        for name, files in images.items()
        if key not in files
    ]
    if labels is not None:
        found += [
            f"{config.root}: case {key!r} has no file that fits {config.labels} (label)"
            for key in names
            if key not in labels
        ]
    return found


def _case(
    config: Config,
    key: str,
    images: Mapping[str, Mapping[str, Path]],
    labels: Mapping[str, Path] | None,
    row: Row | None,
) -> Case:
    cells = row.cells if row else {}
    first = next(iter(images.values()))[key]
    folder = first.relative_to(config.root).parts[0]
    used = {config.case_column, config.patient_column, config.target_column, config.split_column}
    return Case(
        case=key,
        patient=cells.get(config.patient_column) or _patient(config, key),
        images={name: Image(files[key]) for name, files in images.items()},
        label=labels[key] if labels is not None else None,
        target=folder if config.classes else cells.get(config.target_column) or None,
        split=cells.get(config.split_column) or None,
        columns={name: text for name, text in cells.items() if name not in used},
    )


def _patient(config: Config, key: str) -> str:
    if config.patient_pattern is None:
        return key
    match = re.search(config.patient_pattern, key)
    if match is None or not match.group(1):
        raise DataError(f"{config.root}: dataset.patient_pattern does not fit case {key!r}")
    return match.group(1)
