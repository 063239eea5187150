"""Which images a case gives to a model, and on which side of the split it stands.

Splits group by patient, always. Nothing here reads a voxel but `contents`, which hashes files.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medplat import console, nifti
from medplat.dicom import select
from medplat.errors import DataError, Refused
from medplat.types import Case, Image
from medplat.workflow.schema import Input, Split

SIDES = ("train", "validation", "test")


def resolve(cases: Sequence[Case], inputs: Sequence[Input]) -> list[Case]:
    """Give each case one image for each input of the model.

    A case with `images` must name them all; a case with `series` is searched by the rules of
    `inputs`. A study in which they find nothing, or two, is left out; one warning a code says how
    many there are, and the first.

    Raises:
        DataError: A case lacks an image, two cases have the same id, or no case is left.
    """
    seen: set[str] = set()
    kept: list[Case] = []
    left_out: dict[str, list[str]] = {}
    for case in cases:
        if case.case in seen:
            raise DataError(f"case {case.case}: occurs twice in the data set; ids must be unique")
        seen.add(case.case)
        try:
            kept.append(_with_images(case, inputs))
        except Refused as error:
            left_out.setdefault(error.code, []).append(f"case {case.case}: {error.message}")
    reasons = [
        f"{len(found)} of {len(cases)} cases left out, {code}; the first is {found[0]}"
        for code, found in left_out.items()
    ]
    if not kept:
        why = "".join(f"; {reason}" for reason in reasons)
        raise DataError(f"the data set gives no case with all inputs of the model{why}")
    for reason in reasons:
        console.warn(reason)
    return kept


def _with_images(case: Case, inputs: Sequence[Input]) -> Case:
    wanted = [one.name for one in inputs]
    if case.images or not case.series:
        missing = [name for name in wanted if name not in case.images]
        if missing:
            raise DataError(
                f"case {case.case}: has no image for input {', '.join(missing)}; it has "
                f"{', '.join(case.images) or 'none'}: name the inputs as the data set does"
            )
        return replace(case, images={name: case.images[name] for name in wanted})
    chosen = select.choose(case.series, inputs).chosen
    images: dict[str, Image] = {}
    for name in wanted:
        path = chosen[name].series.path
        if path is None:
            raise DataError(f"case {case.case}: the series for input {name} has no file")
        images[name] = nifti.image_of(path, chosen[name].phase)
    return replace(case, images=images)


def split(cases: Sequence[Case], rule: Split) -> dict[str, list[Case]]:
    """Divide cases into train, validation and test, never one patient on two sides.

    The data set's own `split` is followed where it has one; else the first rule given of `file`,
    `every`, `folds`, or shares of the patients drawn with `seed`.

    Returns:
        All three sides, each in the order of `cases`; a side may be empty.

    Raises:
        DataError: A patient stands on two sides, a case on none or on an unknown one, or the
            data set has a split and the workflow gives another.
    """
    side = _sides(cases, rule)
    homes: dict[str, str] = {}
    for case in cases:
        here = side(case)
        if homes.setdefault(case.patient, here) != here:
            raise DataError(
                f"patient {case.patient} is in both {homes[case.patient]} and {here} "
                f"(case {case.case}): a split must keep all cases of a patient on one side"
            )
    return {name: [case for case in cases if homes[case.patient] == name] for name in SIDES}


def _sides(cases: Sequence[Case], rule: Split) -> Callable[[Case], str]:
    if any(case.split is not None for case in cases):
        return _own_split(cases, rule)
    if rule.file is not None:
        return _file_split(cases, rule.file)
    if rule.every is not None:
        chosen = {case.patient for case in cases[rule.every - 1 :: rule.every]}
        return lambda case: "validation" if case.patient in chosen else "train"
    if rule.folds is not None:
        chosen = _fold(cases, rule.folds, rule.fold, rule.seed)
        return lambda case: "validation" if case.patient in chosen else "train"
    return _drawn_split(cases, rule)


def _own_split(cases: Sequence[Case], rule: Split) -> Callable[[Case], str]:
    given = sorted(rule.model_fields_set)
    if given:
        raise DataError(
            f"dataset.split.{given[0]}: the data set fixes the split itself; "
            "remove dataset.split or the data set's split column"
        )
    for case in cases:
        if case.split not in SIDES:
            raise DataError(
                f"case {case.case}: the split '{case.split or ''}' is none of {', '.join(SIDES)}"
            )
    return lambda case: str(case.split)


def _fold(cases: Sequence[Case], folds: int, fold: int, seed: int) -> set[str]:
    """Patients of one fold; the order of the cases does not matter."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    ordered = sorted(cases, key=lambda case: (case.patient, case.case))
    patients = [case.patient for case in ordered]
    if len(set(patients)) < folds:
        raise DataError(f"dataset.split.folds: {folds} folds of {len(set(patients))} patients")
    classes = [case.target or "" for case in ordered]
    if len(set(classes)) > 1:
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    else:
        parts = GroupKFold(folds, shuffle=True, random_state=seed)
    chosen = list(parts.split(patients, classes, patients))[fold - 1][1]
    return {patients[at] for at in chosen}


def _drawn_split(cases: Sequence[Case], rule: Split) -> Callable[[Case], str]:
    if rule.validation + rule.test >= 1:
        raise DataError(
            f"dataset.split: validation {rule.validation:g} and test {rule.test:g} leave nothing "
            "to train on"
        )
    patients = sorted({case.patient for case in cases})
    order = np.random.default_rng(rule.seed).permutation(len(patients))
    tests = _share(rule.test, len(patients))
    validations = _share(rule.validation, len(patients))
    names = ["test"] * tests + ["validation"] * validations
    names += ["train"] * (len(patients) - len(names))
    homes = {patients[at]: name for at, name in zip(order, names, strict=False)}
    return lambda case: homes[case.patient]


def _share(fraction: float, count: int) -> int:
    """That share of `count`, at least one where a share is asked for."""
    return max(1, round(fraction * count)) if fraction > 0 else 0


def _file_split(cases: Sequence[Case], path: Path) -> Callable[[Case], str]:
    key, rows = _read_split_file(path)
    known = {_key(case, key) for case in cases}
    uncovered = sorted(known - rows.keys())
    if uncovered:
        raise DataError(
            f"{path}: says nothing of {key} {', '.join(uncovered[:3])}"
            f"{f' and {len(uncovered) - 3} more' if len(uncovered) > 3 else ''}"
        )
    return lambda case: rows[_key(case, key)]


def _key(case: Case, key: str) -> str:
    return case.patient if key == "patient" else case.case


def _read_split_file(path: Path) -> tuple[str, Mapping[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            key = next((name for name in ("case", "patient") if name in columns), None)
            if key is None or "split" not in columns:
                raise DataError(f"{path}:1: needs the columns case (or patient) and split")
            rows: dict[str, str] = {}
            for line, row in enumerate(reader, start=2):
                _add_split_row(rows, str(row[key]), str(row["split"]), f"{path}:{line}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: the split file cannot be read: {error}") from error
    return key, rows


def _add_split_row(rows: dict[str, str], name: str, side: str, where: str) -> None:
    if side not in SIDES:
        raise DataError(f"{where}: the split is '{side}', not one of {', '.join(SIDES)}")
    if name in rows:
        raise DataError(f"{where}: {name} occurs twice; name each once")
    rows[name] = side


def contents(cases: Iterable[Case], salted: Callable[[str], str]) -> Iterator[tuple[str, ...]]:
    """What each case holds, without its name: the input of `track.runs.dataset_digest`.

    Args:
        cases: With their images resolved.
        salted: Hides an id (`pseudonym.Pseudonyms.digest`).

    Yields:
        The salted id, the class name, then input name, phase and sha256 of each image file, and of
        the label file.

    Raises:
        DataError: A file cannot be read.
    """
    for case in cases:
        parts = [salted(case.case), case.target or ""]
        for name, image in sorted(case.images.items()):
            parts += [name, str(image.phase), _sha256(image.path)]
        parts.append("" if case.label is None else _sha256(case.label))
        yield tuple(parts)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
