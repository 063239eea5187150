"""table: a CSV file with one line a case; paths in it are relative to the file.

    case,patient,image,label,target,split,age
    c001,p01,images/c001.nii.gz,labels/c001.nii.gz,benign,train,61

Only the columns that are there are used; further columns go along with each case, for subgroups.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from medplat.errors import DataError
from medplat.types import Case, Image
from medplat_datasets._rows import Row, case_problem, chosen, fail, read_rows, split_problem


class Config(BaseModel):
    """Keys of `dataset` in a workflow; each column may bear another name in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path = Field(description="The CSV file, UTF-8, first line the column names.")
    images: Mapping[str, str] = Field(
        {"image": "image"}, min_length=1, description="Input name to the column with its files."
    )
    case_column: str | None = Field(
        "case", description="Column of the case id; null: made from the path of the first image."
    )
    patient_column: str = Field(
        "patient", description="Column of the patient; absent: each case its own."
    )
    label_column: str = Field(
        "label", description="Column of the label map files, where there is one."
    )
    target_column: str = Field(
        "target", description="Column of the class name, where there is one."
    )
    split_column: str = Field("split", description="Column with train, validation or test, if any.")
    where: Mapping[str, str] = Field(
        {}, description="Column to text: only the lines that hold these texts are cases."
    )
    delimiter: str = Field(",", min_length=1, max_length=1, description="Between the cells.")

    @property
    def optional(self) -> dict[str, str]:
        """Columns that may be absent, by their usual name."""
        return {
            "patient": self.patient_column,
            "label": self.label_column,
            "target": self.target_column,
            "split": self.split_column,
        }


def cases(config: Config) -> list[Case]:
    """One case a line, in the order of the file.

    Raises:
        DataError: Every problem of the table, each as file:line.
    """
    header, rows = read_rows(config.file, delimiter=config.delimiter)
    fail(_header_problems(config, header))
    problems: list[str] = []
    found: list[Case] = []
    first: dict[str, str] = {}
    for row in chosen(config.file, header, rows, config.where):
        case = _case(row, config)
        problems += [f"{row.where}: {text}" for text in _problems(row, case, config)]
        if case.case in first:
            problems.append(f"{row.where}: case {case.case!r} is already in {first[case.case]}")
        first.setdefault(case.case, row.where)
        found.append(case)
    fail(problems)
    if not found:
        raise DataError(f"{config.file}: the table has no lines below its header")
    return found


def _header_problems(config: Config, header: list[str]) -> list[str]:
    needed = [*config.images.values(), *([config.case_column] if config.case_column else [])]
    needed += [column for usual, column in config.optional.items() if column != usual]
    return [
        f"{config.file}:1: no column {column!r}; there are: {', '.join(header)}"
        for column in dict.fromkeys(needed)
        if column not in header
    ]


def _case(row: Row, config: Config) -> Case:
    cells, folder = row.cells, config.file.parent
    first = cells[next(iter(config.images.values()))]
    case = cells[config.case_column] if config.case_column else _name_of(first)
    label = cells.get(config.label_column)
    used = {config.case_column, *config.optional.values(), *config.images.values()}
    return Case(
        case=case,
        patient=cells.get(config.patient_column) or case,
        images={
            name: Image(folder / cells[column])
            for name, column in config.images.items()
            if cells[column]
        },
        label=folder / label if label else None,
        target=cells.get(config.target_column) or None,
        split=cells.get(config.split_column) or None,
        columns={name: text for name, text in cells.items() if name not in used},
    )


def _name_of(path: str) -> str:
    """`Normal/Normal_100x_1.jpg` -> `Normal-Normal_100x_1`."""
    pure = PurePosixPath(path.replace("\\", "/"))
    name = pure.name.removesuffix(".gz")
    stem = name[: name.rfind(".")] if "." in name else name
    return "-".join([*pure.parent.parts, stem])


def _problems(row: Row, case: Case, config: Config) -> list[str]:
    missing = [column for column in config.images.values() if not row.cells[column]]
    found = [f"column {column!r} is empty; every input needs a file" for column in missing]
    if not missing or config.case_column:
        found += [
            text for text in (case_problem(case.case), split_problem(case.split or "")) if text
        ]
    files = [image.path for image in case.images.values()] + ([case.label] if case.label else [])
    return found + [f"no file {path}" for path in files if not path.is_file()]
