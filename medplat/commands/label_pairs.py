"""Which files of SOURCE or `--labels DIR` are labels, and which series each was drawn on.

DICOM objects say it by UID. Label images say it by the UID, output name, folder or patient that
their name or place tells; where that leaves several series, the only one whose grid fits is taken.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from medplat.dicom import read as dicom_read
from medplat.dicom import scan as dicom_scan
from medplat.dicom import source as dicom_source
from medplat.errors import MedplatError, Refused

if TYPE_CHECKING:
    from medplat.dicom.header import Entry, Header
    from medplat.dicom.labels import LabelVolume, Segment
    from medplat.dicom.scan import SourceFile
    from medplat.dicom.series import SeriesFiles
    from medplat.pseudonym import Pseudonyms
    from medplat.types import Geometry

PLACE = "(labels)"  # Stands for the folder of --labels in files.csv.
_IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha")
_NAMES = (".json", ".txt", ".label")
_MAX_NAMES = 1 << 20
_DRAWN = re.compile(r"(?i)(^|[^a-z])(labels?|seg|segmentation|segments?|masks?|rois?)([^a-z]|$)")
_UID = re.compile(r"\d+(?:\.\d+){5,}")


@dataclass(frozen=True)
class Drawing:
    """A label, and the file that names its values."""

    file: SourceFile
    names: SourceFile | None = None

    @property
    def path(self) -> str:
        """Path as in files.csv."""
        return self.file.path

    @property
    def header(self) -> Header | None:
        """Of DICOM objects."""
        return self.file.header

    @property
    def entries(self) -> list[Entry]:
        """Where its bytes lie, and those of its names."""
        found = [entry_of(one) for one in (self.file, self.names) if one is not None]
        return [one for one in found if one is not None]


@dataclass(frozen=True)
class Pairing:
    """Labels by the series that they were drawn on.

    Attributes:
        of_series: By SeriesInstanceUID, in the order of their output names.
        orphans: Labels that belong to no series of SOURCE.
        names: Paths of the files that name the values of labels.
    """

    of_series: dict[str, list[Drawing]]
    orphans: tuple[SourceFile, ...]
    names: frozenset[str]


def entry_of(file: SourceFile) -> Entry | None:
    """Where the bytes of a file lie, where anyone will want them."""
    return file.header.entry if file.header else file.entry


@contextmanager
def on_disk(entry: Entry) -> Iterator[Path]:
    """A path that the readers of images can open: the file, or a copy of an archive's member."""
    if entry.member is None:
        yield entry.file
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PurePosixPath(entry.member.replace("\\", "/")).name
        with dicom_source.open_entry(entry) as member:
            path.write_bytes(member.read())
        yield path


def gather(
    files: Sequence[SourceFile], source: Path, folder: Path | None, workers: int
) -> list[SourceFile]:
    """All input files, label images among them marked as labels.

    Args:
        files: Of SOURCE.
        source: SOURCE.
        folder: Of `--labels`; all label images in it count, elsewhere those that are called so.
        workers: Threads that read headers.
    """
    inner: tuple[str, ...] | None = None
    outside: list[SourceFile] = []
    if folder is not None:
        root, whole = source.resolve(), folder.resolve()
        if source.is_dir() and whole.is_relative_to(root):
            inner = whole.relative_to(root).parts
        else:
            outside = [_renamed(one) for one in dicom_scan.scan(folder, workers)]
    marked = [_marked(one, inner, called=True) for one in files]
    marked += [_marked(one, None, called=False) for one in outside]
    return sorted(marked, key=lambda one: one.path)


def _renamed(file: SourceFile) -> SourceFile:
    path = f"{PLACE}/{file.path}"
    if file.status == "image":
        reason = "it is an image in the folder of labels"
        return dicom_scan.SourceFile(path, "skipped", "NOT_IMAGE", reason)
    entry, header = file.entry, file.header
    if header is not None:
        header = replace(header, entry=replace(header.entry, path=path))
    return replace(
        file, path=path, header=header, entry=replace(entry, path=path) if entry else None
    )


def _marked(file: SourceFile, inner: tuple[str, ...] | None, *, called: bool) -> SourceFile:
    """The file as a label, where it is a label image."""
    if file.entry is None or not file.path.lower().endswith(_IMAGES):
        return file
    parts = PurePosixPath(file.path).parts
    meant = not called or (inner is not None and parts[: len(inner)] == inner)
    if meant or _DRAWN.search(parts[-1]):
        return replace(file, status="label", code=None, reason="")
    return file


def pair(
    files: Sequence[SourceFile], groups: Sequence[SeriesFiles], pseudonyms: Pseudonyms
) -> Pairing:
    """Say for each label which series it was drawn on.

    Args:
        files: From `gather`.
        groups: All series of SOURCE.
        pseudonyms: For the names of outputs.
    """
    labels = [file for file in files if file.status == "label"]
    if not labels:
        return Pairing({}, (), frozenset())
    known = _Known(groups, pseudonyms)
    of_series: dict[str, list[Drawing]] = {}
    orphans = []
    named = set()
    for label in labels:
        drawing = Drawing(label, _names_of(label, files) if label.header is None else None)
        uid = _drawn_on(drawing, known)
        if uid is None:
            orphans.append(label)
            continue
        of_series.setdefault(uid, []).append(drawing)
        if drawing.names is not None:
            named.add(drawing.names.path)
    for drawings in of_series.values():
        drawings.sort(key=_order)
    return Pairing(of_series, tuple(orphans), frozenset(named))


def _order(drawing: Drawing) -> tuple[str, int, str]:
    header = drawing.header
    sizes = [entry.size for entry in drawing.entries]
    return header.sop_instance_uid if header else "", sizes[0] if sizes else 0, drawing.path


class _Known:
    """What the series of SOURCE are called, and where they lie."""

    def __init__(self, groups: Sequence[SeriesFiles], pseudonyms: Pseudonyms) -> None:
        self.groups = groups
        self.pseudonyms = pseudonyms
        self._grids: dict[str, list[Geometry]] = {}

    @cached_property
    def by_image(self) -> dict[str, str]:
        """Series by SOPInstanceUID."""
        return {
            header.sop_instance_uid: group.series_uid
            for group in self.groups
            for header in group.headers
        }

    @cached_property
    def folders(self) -> list[set[PurePosixPath]]:
        """The folders that hold the files of each series."""
        return [{PurePosixPath(one.path).parent for one in group.headers} for group in self.groups]

    def stem(self, group: SeriesFiles) -> str:
        """What the names of its outputs begin with."""
        from medplat.dicom import summary

        return summary.stack_key(group.headers, group, "", self.pseudonyms)

    def grids(self, group: SeriesFiles) -> list[Geometry]:
        """The grids of its stacks."""
        if group.series_uid not in self._grids:
            try:
                plans = dicom_read.plan(group, allow_shear=True)
            except MedplatError:
                plans = []
            found = [plan.geometry for plan in plans if plan.geometry is not None]
            self._grids[group.series_uid] = found
        return self._grids[group.series_uid]


def _drawn_on(drawing: Drawing, known: _Known) -> str | None:
    """The series of a label; None where it belongs to none of SOURCE, or to none alone."""
    if drawing.header is not None:
        return _by_uid(drawing, known)
    candidates = _candidates(drawing, known)
    if len(candidates) < 2:
        return candidates[0].series_uid if candidates else None
    from medplat.dicom import labels

    try:
        volume = read_image(drawing, apart=True)[0]
    except Refused:
        return candidates[0].series_uid
    fit = [
        group
        for group in candidates
        if any(labels.fitting(volume, grid) for grid in known.grids(group))
    ]
    one_study = len({group.study_uid for group in candidates}) == 1
    if len(fit) > 1 or not (fit or one_study):
        return None
    return (fit or candidates)[0].series_uid


def _by_uid(drawing: Drawing, known: _Known) -> str | None:
    from medplat.dicom import rtstruct, seg

    header = drawing.header
    assert header is not None
    reader = rtstruct if header.sop_class_uid == dicom_scan.RTSTRUCT else seg
    try:
        with dicom_source.open_entry(header.entry) as opened:
            uid, images = reader.referenced(opened)
    except Exception:  # Whatever a damaged object makes the parser raise: it names no series.
        return None
    series = {known.by_image[image] for image in images if image in known.by_image}
    if uid is None:
        return series.pop() if len(series) == 1 else None
    if series and uid not in series:
        return None
    return uid if any(group.series_uid == uid for group in known.groups) else None


def _candidates(drawing: Drawing, known: _Known) -> list[SeriesFiles]:
    """The series that a label image may belong to, by the first rule that finds any."""
    path = PurePosixPath(drawing.path)
    text = drawing.path
    groups = list(known.groups)
    stated = _UID.findall(text)
    if drawing.names is not None and (uid := _stated_series(drawing.names)):
        stated.append(uid)
    if stated:
        by_series = [one for one in groups if one.series_uid in stated]
        return by_series or [one for one in groups if one.study_uid in stated]
    by_output = [one for one in groups if _holds(text, known.stem(one))]
    if by_output:
        return by_output
    here = [
        one
        for one, folders in zip(groups, known.folders, strict=True)
        if path.parent in folders or _called(path, folders)
    ]
    if here:
        return here
    of_person = [one for one in groups if any(_holds(text, name) for name in _persons(one, known))]
    if of_person:
        return of_person
    below = [
        one
        for one, folders in zip(groups, known.folders, strict=True)
        if all(one.is_relative_to(path.parent) for one in folders)
    ]
    if below:
        return below
    return groups if len(groups) == 1 else []


def _called(path: PurePosixPath, folders: set[PurePosixPath]) -> bool:
    """Whether a label has the name of the one folder that holds its series."""
    if len(folders) != 1:
        return False
    folder = next(iter(folders))
    stem = next(path.name[: -len(end)] for end in _IMAGES if path.name.lower().endswith(end))
    core = re.sub(r"(?i)[._ -]*(labels?|seg|segmentation|masks?|rois?)$", "", stem)
    return bool(folder.name) and folder.name in {core, stem, *path.parts[:-1]}


def _persons(group: SeriesFiles, known: _Known) -> list[str]:
    patient = dicom_scan.identity(group.headers[0]).patient_id.strip()
    return [name for name in (known.pseudonyms.case(group.study_uid), patient) if len(name) > 2]


def _holds(text: str, name: str) -> bool:
    return re.search(rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])", text) is not None


def _names_of(label: SourceFile, files: Sequence[SourceFile]) -> SourceFile | None:
    """The file that names the values of a label image.

    It has the label's name with another ending; else it is the only ITK-SNAP description of the
    folder, or of the folder of `--labels`.
    """
    path = PurePosixPath(label.path)
    stem = next(path.name[: -len(end)] for end in _IMAGES if path.name.lower().endswith(end))
    near = {path.parent, *([PurePosixPath(PLACE)] if path.parts[0] == PLACE else [])}
    texts = [
        file
        for file in files
        if file.status == "skipped"
        and file.entry is not None
        and file.entry.size <= _MAX_NAMES
        and file.path.lower().endswith(_NAMES)
        and PurePosixPath(file.path).parent in near
    ]
    own = {f"{one}{end}" for one in (stem, stem.partition(".")[0]) for end in _NAMES}
    for file in texts:
        if PurePosixPath(file.path).name in own and parse_names(file) is not None:
            return file
    rest = [file for file in texts if not file.path.lower().endswith(".json")]
    for place in (path.parent, PurePosixPath(PLACE)):
        found = [one for one in rest if PurePosixPath(one.path).parent == place]
        found = [one for one in found if parse_names(one) is not None]
        if len(found) == 1:
            return found[0]
    return None


def _text(file: SourceFile) -> str:
    if file.entry is None:
        return ""
    with dicom_source.open_entry(file.entry) as opened:
        return opened.read(_MAX_NAMES).decode("utf-8", "replace")


def parse_names(file: SourceFile) -> dict[int, Segment] | None:
    """The names in a file beside a label image; None where it is something else."""
    from medplat.commands import label_names

    return label_names.parse(_text(file))


def _stated_series(file: SourceFile) -> str | None:
    from medplat.commands import label_names

    return label_names.series_uid(_text(file))


def read_image(drawing: Drawing, *, apart: bool = False) -> list[LabelVolume]:
    """Read a label image with the names beside it, as one label or one for each layer.

    Raises:
        Refused: See `label_images.read`.
    """
    from medplat.commands import label_images

    names = parse_names(drawing.names) if drawing.names is not None else None
    assert drawing.file.entry is not None
    with on_disk(drawing.file.entry) as path:
        return label_images.read(path, names, apart=apart)
