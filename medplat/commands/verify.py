"""`medplat verify`: are existing NIfTI files true to the DICOM that they were made from?

A file is paired with its series by the contents of its slices, whichever way they lie, so that what
its header says can be held against what the DICOM headers say of the same voxels.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medplat import console, nifti, pseudonym
from medplat.commands import Outcome, verify_geometry, verify_match, verify_repair
from medplat.commands.verify_geometry import Finding
from medplat.commands.verify_source import RefusedSeries, Slices, Unit, refused, units
from medplat.dicom import read as dicom_read
from medplat.dicom import scan as dicom_scan
from medplat.dicom import series as dicom_series
from medplat.errors import DataError, Refused, UsageError
from medplat.report import verify as report
from medplat.types import Affine, Array, Volume

Source = TypeVar("Source", bound=Slices)

_RANGE = 0.01
_NAMES = ("*.nii", "*.nii.gz")
_LABELS = ("label", "fraction")
_MENDED = frozenset(
    {"NIFTI_SPACING", "NIFTI_FLIPPED", "NIFTI_AXES", "NIFTI_ROTATED", "NIFTI_SHIFTED"}
    | {"NIFTI_NO_ORIENTATION", "NIFTI_FORMS"}
)


@dataclass
class Checked:
    """One NIfTI file.

    Attributes:
        path: Of the file.
        shown: Its path in the report.
        status: "true", "untrue", "unpaired", "unreadable" or "label" (not compared).
        unit: The series that it was made from.
        refused: The same, where no volume is made of that series.
        paired_by: "slice contents" or "grid and value range".
        findings: What is wrong.
        phases: For each phase of the file, that of the unit; () where paired by shape.
        true: Where its voxels lie.
        repaired: The file that was written beside it.
    """

    path: Path
    shown: str
    status: str = "unpaired"
    unit: Unit | None = None
    refused: RefusedSeries | None = None
    paired_by: str = ""
    findings: list[Finding] = field(default_factory=list)
    phases: tuple[int, ...] = ()
    true: Affine | None = None
    repaired: str = ""

    def described(self) -> dict[str, Any]:
        """The file's row, for the report and `--json`."""
        source = self.unit or self.refused
        return {
            "path": self.shown,
            "status": self.status,
            "series": self._series(),
            "series_uid": source.series_uid if source else None,
            "paired_by": self.paired_by or None,
            "findings": [{"code": one.code, "message": one.message} for one in self.findings],
            "repaired": self.repaired or None,
        }

    def _series(self) -> str | None:
        if self.unit is not None:
            return self.unit.name(self.phases)
        return self.refused.name if self.refused else None


def run(
    given: Path, against: Path, *, project: Path, repair: bool = False, page: Path | None = None
) -> Outcome:
    """Compare NIfTI files with their DICOM.

    Args:
        given: A NIfTI file, or a folder of them.
        against: The export: a folder, a .zip or a DICOMDIR.
        project: Project folder, for the pseudonyms of cases.
        repair: Write `<name>_repaired.nii.gz` beside files of which only the affine is wrong.
        page: The report; None: `verify.html` beside the files, else in the current folder.

    Returns:
        Exit code 0 where all files are true, else 3; `{files, counts, refused, exit_code, report}`.

    Raises:
        UsageError: There is no NIfTI file, SOURCE holds no series, or the report cannot be written.
    """
    files = _files(given)
    page = page or _page(given if given.is_dir() else given.parent)
    found, lost = _units(against, project)
    for one in console.track(files, "files", total=len(files)):
        _check(one, found, lost)
    _complete(files)
    for one in files if repair else ():
        _repair(one)
    return _ended(files, sorted(one.plan.series.codes[0] for one in lost), page)


def _files(given: Path) -> list[Checked]:
    if given.is_dir():
        paths = sorted({path for name in _NAMES for path in given.rglob(name)})
        root = given
    else:
        paths, root = [given], given.parent
    paths = [path for path in paths if not path.name.startswith(".") and path.is_file()]
    if not paths or not paths[0].name.lower().endswith((".nii", ".nii.gz")):
        raise UsageError(f"{given} holds no NIfTI file (.nii, .nii.gz)")
    return [Checked(path, path.relative_to(root).as_posix()) for path in paths]


def _page(folder: Path) -> Path:
    """Beside the files; in the current folder where nothing can be written there."""
    return (folder if os.access(folder, os.W_OK) else Path.cwd()) / "verify.html"


def _units(against: Path, project: Path) -> tuple[list[Unit], list[RefusedSeries]]:
    """What SOURCE holds, and the series of it that are refused."""
    pseudonyms = pseudonym.load(project)
    found: list[Unit] = []
    lost: list[RefusedSeries] = []
    for group in dicom_series.group(dicom_scan.scan(against)):
        plans = dicom_read.plan(group, pseudonyms=pseudonyms, allow_shear=True)
        found += units(plans)
        lost += refused(group, plans)
    if not found and not lost:
        raise UsageError(f"{against} holds no series that could be converted")
    return found, lost


def _check(one: Checked, found: Sequence[Unit], lost: Sequence[RefusedSeries]) -> None:
    if _is_label(one.path):
        one.status = "label"
        return
    try:
        volume = nifti.read(one.path, alone=True)
    except DataError as error:
        one.status = "unreadable"
        text = str(error).removeprefix(f"{one.path}: ")
        one.findings.append(Finding("NIFTI_UNREADABLE", text))
        return
    values = verify_match.Values(_four(volume), volume.slope, volume.intercept)
    if values.not_finite:
        text = f"values that are no finite numbers: {values.not_finite}"
        one.findings.append(Finding("NIFTI_VALUES", text))
    paired = _pair_by_content(one, volume, values, found) or _pair_with_refused(one, values, lost)
    if not paired and not _pair_by_shape(one, volume, values, found):
        text = "no series of SOURCE has its slices, nor its grid and value range"
        one.findings.append(Finding("NIFTI_UNPAIRED", text))
        return
    if one.true is not None:
        _check_header(one, volume)
    one.status = "untrue" if one.findings else "true"


def _is_label(path: Path) -> bool:
    """Whether medplat convert wrote the file as a label."""
    try:
        return nifti.read_sidecar(path).get("kind") in _LABELS
    except DataError:
        return False  # Another tool's sidecar.


def _four(volume: Volume) -> Any:
    return volume.array[..., np.newaxis] if volume.array.ndim == 3 else volume.array


def _pair_by_content(
    one: Checked, volume: Volume, values: verify_match.Values, found: Sequence[Unit]
) -> bool:
    best: tuple[float, verify_match.Match, Unit] | None = None
    for array, unit in _likest(values, found):
        match = verify_match.lay(array, values.real, unit, volume.geometry.affine)
        if match is None:
            continue
        shape = volume.array.shape[:3]
        off = verify_geometry.corners_off(volume.geometry.affine, match.true, shape)
        if best is None or off < best[0]:
            best = off, match, unit
    if best is None:
        return False
    _, match, one.unit = best
    one.paired_by, one.phases, one.true = "slice contents", match.phases, match.true
    one.findings += match.findings
    return True


def _pair_with_refused(
    one: Checked, values: verify_match.Values, lost: Sequence[RefusedSeries]
) -> bool:
    """A file made from a series that is refused: what it says of the voxels cannot be true."""
    likest = _likest(values, lost)
    if not likest:
        return False
    _, one.refused = likest[0]
    one.paired_by = "slice contents"
    text = f"its slices are those of a series that is refused ({one.refused.why})"
    one.findings.append(Finding("NIFTI_REFUSED", text))
    return True


def _likest(values: verify_match.Values, found: Sequence[Source]) -> list[tuple[Array, Source]]:
    """The series that share most slices with a file, and the values it was read as.

    Where all slices of the file as stored are known, no other reading of it is tried.
    """
    known: dict[int, tuple[float, Array]] = {}
    for read in (verify_match.as_stored, verify_match.rescaled):
        for at, unit in enumerate(found):
            if at in known or not verify_match.axes_of(values.array.shape, unit):
                continue
            try:
                reading = read(values, unit)
            except Refused:
                continue  # Its pixels cannot be read: nothing can be held against it.
            if reading is not None:
                known[at] = reading
        if any(share == 1 for share, _ in known.values()):
            break
    most = max((share for share, _ in known.values()), default=0.0)
    return [(known[at][1], found[at]) for at in sorted(known) if known[at][0] == most]


def _pair_by_shape(
    one: Checked, volume: Volume, values: verify_match.Values, found: Sequence[Unit]
) -> bool:
    """For files whose voxels were changed: they still lie on the grid of a series."""
    shape = values.array.shape[:3]
    fit: list[tuple[Unit, Affine]] = []
    for unit in found:
        if sorted(shape) != sorted(unit.shape) or values.array.shape[3] > len(unit.phases):
            continue
        try:
            slope, intercept = unit.scales[0][0]
            low, high = (slope * v + intercept for v in (unit.contents.low, unit.contents.high))
        except Refused:
            continue
        near = max(abs(values.low - low), abs(values.high - high)) <= _RANGE * max(high - low, 1e-9)
        true = verify_geometry.nearest(volume.geometry.affine, unit.affine, shape, unit.shape)
        if near and _lies_on(volume, true, unit):
            fit.append((unit, true))
    if not fit:
        return False
    text = "the voxels are not those of the series: they were changed"
    if len(fit) > 1:
        text = f"the voxels are not those of any of {len(fit)} series on its grid"
    else:
        one.unit = fit[0][0]
    one.true = fit[0][1]
    one.paired_by = "grid and value range"
    one.findings.append(Finding("NIFTI_VALUES", text))
    return True


def _lies_on(volume: Volume, true: Affine, unit: Unit) -> bool:
    """Whether a file lies on a grid; of a series that states lengths only, whether those fit."""
    said, shape = volume.geometry.affine, volume.array.shape
    if unit.flat:
        return not verify_geometry.compare_sizes(said, true, shape)
    return verify_geometry.corners_off(said, true, shape) <= verify_geometry.VOXELS


def _check_header(one: Checked, volume: Volume) -> None:
    geometry = volume.geometry
    assert one.true is not None
    if one.unit is not None and one.unit.flat:
        one.findings += verify_geometry.compare_sizes(geometry.affine, one.true, volume.array.shape)
        return
    if geometry.orientation != "known":
        text = "sform and qform have code 0: nothing says how the voxels lie"
        one.findings.append(Finding("NIFTI_NO_ORIENTATION", text))
        return
    one.findings += verify_geometry.compare(geometry.affine, one.true, volume.array.shape)
    off = verify_repair.forms_off(one.path, volume.array.shape)
    if off > verify_geometry.VOXELS:
        text = f"sform and qform differ by {off:.3g} voxels: tools disagree on which to read"
        one.findings.append(Finding("NIFTI_FORMS", text))


def _complete(checked: Sequence[Checked]) -> None:
    """Say which phases of a series stand in no file at all."""
    of_unit: dict[int, list[Checked]] = defaultdict(list)
    for one in checked:
        if one.unit is not None and one.phases:
            of_unit[id(one.unit)].append(one)
    for files in of_unit.values():
        unit = files[0].unit
        assert unit is not None
        held = {unit.phases[phase] for one in files for phase in one.phases}
        stacks = {stack for stack, _ in held}
        absent = [t for stack, t in unit.phases if stack in stacks and (stack, t) not in held]
        if absent:
            shown = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
            text = f"phases {shown} of {len(unit.phases)} stand in no file"
            files[0].findings.append(Finding("NIFTI_PHASES", text))
            files[0].status = "untrue"


def _repair(one: Checked) -> None:
    """Write the file with the true affine, where nothing else is wrong with it."""
    codes = {finding.code for finding in one.findings}
    if one.true is None or one.status != "untrue":
        return
    if one.paired_by == "slice contents" and codes <= _MENDED:
        one.repaired = verify_repair.repair(one.path, one.true).name


def _ended(checked: Sequence[Checked], refused: Sequence[str], page: Path) -> Outcome:
    for one in checked:
        codes = " ".join(finding.code for finding in one.findings)
        console.say(f"{one.shown}: {one.status} {codes}".rstrip())
        for finding in one.findings:
            console.say(f"    {finding.message}")
        if one.repaired:
            console.say(f"    written: {one.repaired}")
    rows = [one.described() for one in checked]
    counts = dict.fromkeys(("true", "untrue", "unpaired", "unreadable", "label"), 0)
    for one in checked:
        counts[one.status] += 1
    try:
        report.write(page, rows, counts, refused)
    except OSError as error:
        raise UsageError(
            f"{page} cannot be written ({error.strerror}): run it in another folder"
        ) from error
    console.say(f"report: {page}")
    code = 3 if counts["untrue"] + counts["unpaired"] + counts["unreadable"] else 0
    summary = {"files": rows, "counts": counts, "refused": list(refused), "exit_code": code}
    return Outcome(code, summary | {"report": str(page)})
