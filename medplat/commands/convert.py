"""`medplat convert`: a PACS export to NIfTI volumes, with an account of every file."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from medplat import console, manifest, paths, pseudonym
from medplat.commands import Outcome
from medplat.commands import convert_accounts as accounts
from medplat.commands import convert_series as work
from medplat.commands import decisions as decided
from medplat.commands.convert_plan import Shard, Work, plan
from medplat.commands.convert_series import Job, Options
from medplat.dicom import read as dicom_read
from medplat.dicom.index import Index
from medplat.errors import UsageError
from medplat.pseudonym import Pseudonyms
from medplat.report import convert as report

if TYPE_CHECKING:
    from medplat.commands.convert_recipe import Recipe
    from medplat.dicom.deidentify import Deidentifier

_ROOM = 160 << 20  # Bytes of arrays in memory at the same time, or one series where it is larger.


def run(
    source: Path,
    out: Path,
    *,
    project: Path,
    workflow: Path | None = None,
    dataset: str | None = None,
    settings: Sequence[str] = (),
    labels: Path | None = None,
    deidentify: Path | None = None,
    split_phases: bool = False,
    allow_shear: bool = False,
    resample: bool = False,
    decisions: Path | None = None,
    keep: Sequence[str] = (),
    link_table: Path | None = None,
    gzip_level: int | None = None,
    no_gzip: bool = False,
    workers: int | None = None,
    shard: Shard | None = None,
    executor: str = "local",
    dry_run: bool = False,
) -> Outcome:
    """Convert SOURCE into OUT.

    Args:
        source: A folder, a .zip or a DICOMDIR.
        out: Output folder; what it holds already is kept where it is still true.
        project: Project folder, which holds the salt.
        workflow: A convert workflow.
        dataset: Short for the convert workflow of this data set.
        settings: `key.path=value`, over the workflow.
        labels: Folder of label files; those in SOURCE are found as well.
        deidentify: Folder for de-identified copies of the images, see `dicom.deidentify`.
        split_phases: One 3-D file a phase.
        allow_shear: Convert sheared series, with a warning.
        resample: Bring sheared and unevenly spaced series onto a regular grid, with a warning.
        decisions: How a person settles doubtful series, see `commands.decisions`.
        keep: "patient-id", "demographics": what may stand in sidecars.
        link_table: Where to write the site's own key; never under OUT.
        gzip_level: 0 to 9; None: the workflow's.
        no_gzip: Write `.nii`.
        workers: Series converted at the same time; None: one a core, 8 at most.
        shard: (I, N): only studies whose UID hash modulo N is I - 1.
        executor: "local".
        dry_run: Say what would be done, write nothing.

    Returns:
        Exit code and `{out, counts, exit_code, resume}`.

    Raises:
        UsageError: An option cannot be used, OUT has another salt, or SOURCE holds no image.
    """
    if executor != "local":
        raise UsageError("--executor ray is not built yet: leave it out")
    _places(source, out, link_table, labels)
    if deidentify is not None:
        _apart(deidentify, source, out)
    plain, recipe = _workflow(workflow, dataset, settings, keep)
    settled = decided.read(decisions) if decisions is not None else {}
    options = replace(
        plain,
        split_phases=split_phases or plain.split_phases,
        allow_shear=allow_shear,
        resample=resample,
        gzip_level=plain.gzip_level if gzip_level is None else gzip_level,
        suffix=".nii" if no_gzip else ".nii.gz",
        keep=tuple(sorted(set(keep))),
        deidentify=deidentify,
    )
    pseudonyms = pseudonym.load(project)
    pseudonym.check_fingerprint(out, pseudonyms, record=not dry_run)
    many = workers or min(8, os.cpu_count() or 1)
    resume = _command(source, out, options, workflow, dataset, settings, labels, link_table, shard)
    resume += f" --decisions {shlex.quote(str(decisions))}" if decisions is not None else ""
    if project.resolve() != paths.project():
        resume += f" --project {shlex.quote(str(project))}"
    if dry_run:
        return _dry_run(
            plan(source, shard, many, options, pseudonyms, labels_in=labels, decisions=settled),
            out,
            resume,
            recipe,
        )
    with console.resume_line(resume), manifest.locked(out, shard):
        with _index(out, options, pseudonyms, link_table) as index:
            todo = plan(
                source, shard, many, options, pseudonyms, link_table, labels, index, settled
            )
            copies = _copies(deidentify, pseudonyms)
            meanwhile = [report.prepare, *([index.close] if index else [])]
            code, counts = _convert(todo, out, options, many, shard, copies, meanwhile)
        if recipe is not None:
            code = recipe.finish(out, code, options.gzip_level)
    return Outcome(code, {"out": str(out), "counts": counts, "exit_code": code, "resume": resume})


@contextmanager
def _index(
    out: Path, options: Options, pseudonyms: Pseudonyms, link_table: Path | None
) -> Iterator[Index | None]:
    """The index of OUT; None where something is asked for that it must not hold."""
    if options.keep or link_table is not None:
        yield None
        return
    index = Index(out, pseudonyms)
    try:
        yield index
    finally:
        index.close()


def _apart(folder: Path, source: Path, out: Path) -> None:
    """Refuse a folder for copies that overlaps SOURCE or OUT."""
    whole = folder.resolve()
    for other in (source.resolve(), out.resolve()):
        if whole.is_relative_to(other) or other.is_relative_to(whole):
            raise UsageError(f"--deidentify {folder} overlaps {other}: choose a folder beside it")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--deidentify {folder} is not a folder")


def _copies(folder: Path | None, pseudonyms: Pseudonyms) -> Deidentifier | None:
    if folder is None:
        return None
    from medplat.dicom.deidentify import Deidentifier

    return Deidentifier(folder, pseudonyms)


def _places(source: Path, out: Path, link_table: Path | None, labels: Path | None) -> None:
    if not source.exists():
        raise UsageError(f"{source} does not exist: give a folder, a .zip or a DICOMDIR")
    if labels is not None and not labels.is_dir():
        raise UsageError(f"--labels {labels} is not a folder")
    if labels is not None and any(
        one.resolve().is_relative_to(labels.resolve()) for one in (source, out)
    ):
        raise UsageError(f"--labels {labels} holds SOURCE or OUT: give a folder of labels alone")
    whole = out.resolve()
    if source.is_dir() and whole.is_relative_to(source.resolve()):
        raise UsageError(f"{out} lies inside {source}: choose an output folder beside it")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder")
    for path in sorted(out.glob("manifest*.jsonl")):
        lines = manifest.Manifest(path, manifest.CASE_KEY).lines().values()
        if any("series_uid" not in line for line in lines):
            raise UsageError(f"{out} holds results of infer: choose another output folder")
    if link_table is not None and link_table.resolve().is_relative_to(whole):
        raise UsageError(
            "--link-table must not lie under the output folder, which is meant to be handed on"
        )


def _workflow(
    path: Path | None, dataset: str | None, settings: Sequence[str], keep: Sequence[str]
) -> tuple[Options, Recipe | None]:
    """What a workflow says of the options, and its data set's recipe; else the defaults."""
    if path is None and dataset is None and not settings:
        return Options(), None  # The schema would take longer to import than a series to convert.
    from medplat import registry, transforms
    from medplat.commands import convert_recipe
    from medplat.workflow import read as workflow_read
    from medplat.workflow.schema import ConvertWorkflow

    if path is not None and dataset is not None:
        raise UsageError("give --workflow or --dataset, not both")
    if path is None and dataset is not None:
        path = registry.workflows().get(f"convert/{dataset}")
        if path is None:
            raise UsageError(
                f"no convert workflow for the data set '{dataset}' comes with medplat: "
                "see `medplat list workflows`"
            )
    if path is None:
        read = workflow_read.read_text("kind: convert\n", "--set", settings, kind="convert")
    else:
        read = workflow_read.read(path, settings, kind="convert", plugins=False)
    assert isinstance(read, ConvertWorkflow)
    if read.transforms:
        transforms.compose(read.transforms)  # Refuses now what would fail on every series.
    options = Options(
        split_phases=read.convert.split_phases,
        gzip_level=read.convert.gzip_level,
        transforms=read.transforms,
    )
    return options, convert_recipe.load(read, keep)


def _command(
    source: Path,
    out: Path,
    options: Options,
    workflow: Path | None,
    dataset: str | None,
    settings: Sequence[str],
    labels: Path | None,
    link_table: Path | None,
    shard: Shard | None,
) -> str:
    """The line that resumes this run."""
    words = ["medplat", "convert", str(source), str(out)]
    words += ["--workflow", str(workflow)] if workflow else []
    words += ["--dataset", dataset] if dataset else []
    for setting in settings:
        words += ["--set", setting]
    words += ["--split-phases"] if options.split_phases else []
    words += ["--allow-shear"] if options.allow_shear else []
    words += ["--resample"] if options.resample else []
    for kept in options.keep:
        words += ["--keep", kept]
    words += ["--labels", str(labels)] if labels else []
    words += ["--deidentify", str(options.deidentify)] if options.deidentify else []
    words += ["--link-table", str(link_table)] if link_table else []
    words += ["--gzip-level", str(options.gzip_level)] if options.gzip_level != 1 else []
    words += ["--no-gzip"] if options.suffix == ".nii" else []
    words += ["--shard", f"{shard[0]}/{shard[1]}"] if shard else []
    return shlex.join(words)


def _convert(
    todo: Work,
    out: Path,
    options: Options,
    workers: int,
    shard: Shard | None,
    copies: Deidentifier | None,
    meanwhile: Sequence[Callable[[], None]],
) -> tuple[int, dict[str, int]]:
    """Do what is to be done, write the accounts; exit code and counts by status.

    What may be done `meanwhile` runs beside the first series.
    """
    record = manifest.Manifest(out / manifest.name_of(shard), manifest.SERIES_KEY)
    record.path.touch()
    lines = record.lines()
    how = options.digest()
    waiting = [job for job in todo.jobs if not work.unchanged(job, lines, out, how, copies)]
    if len(waiting) < len(todo.jobs):
        console.say(f"{len(todo.jobs) - len(waiting)} series are unchanged and left as they are")
    for line in _done(waiting, out, options, workers, copies, meanwhile):
        record.append(line)
    work.tidy(waiting, out)
    holding = record.lines()
    rows = [row for job in todo.jobs for row in accounts.rows_of_series(job, holding)]
    rows += accounts.rows_of_others(todo.files, todo.orphans, todo.names)
    found = accounts.check(rows, todo.files)
    _write_accounts(out, rows, shard, found["missing"])
    lines_now = manifest.current(holding.values())
    counts = manifest.counts(lines_now, manifest.SERIES_STATUSES)
    _tell(found, counts, out)
    for line in lines_now if copies is not None else ():
        if why := (line.get("deidentified") or {}).get("refused"):
            console.say(f"no de-identified copy of {line['case']}/{line['stack']}: {why}")
    stray = accounts.stray(rows, todo.jobs)
    if not lines_now and not stray:
        if shard is not None:
            return 0, counts
        raise UsageError("SOURCE holds no DICOM image to convert: files.csv says what it holds")
    return _judged(lines_now, counts, stray), counts


def _judged(lines: Sequence[manifest.Line], counts: dict[str, int], stray: int) -> int:
    """The exit code: of the series, and of rejected files that no series answers for."""
    code = manifest.exit_code(lines)
    if stray and code == 0:
        return 3 if counts["converted"] + counts["warned"] else 4
    return code


def _done(
    jobs: Sequence[Job],
    out: Path,
    options: Options,
    workers: int,
    copies: Deidentifier | None,
    meanwhile: Sequence[Callable[[], None]],
) -> Iterator[manifest.Line]:
    """The manifest lines of the jobs as they end, `workers` at a time, the largest first.

    Memory stays flat whatever the number of workers: see `Room`.
    """
    sizes = [max(dicom_read.array_bytes(plan) for plan in job.plans) for job in jobs]
    room = Room(max(sizes, default=0))

    def one(job: Job, size: int) -> list[manifest.Line]:
        with room.taken(size):
            return work.convert(job, out, options, copies)

    order = sorted(zip(jobs, sizes, strict=True), key=lambda pair: -pair[1])
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(one, job, size) for job, size in order[:workers]]
        beside = [pool.submit(other) for other in meanwhile]
        futures += [pool.submit(one, job, size) for job, size in order[workers:]]
        try:
            ended = console.track(as_completed(futures), "series", total=len(futures))
            for number, future in enumerate(ended, start=1):
                for line in future.result():
                    shown = " ".join([line["status"], *line["codes"]])
                    console.say(f"[{number}/{len(jobs)}] {line['case']}/{line['stack']}: {shown}")
                    yield line
            for other in beside:
                other.result()
        finally:
            for future in futures:
                future.cancel()


class Room:
    """Memory for the arrays of series that are converted at the same time.

    Args:
        largest: Bytes of the largest series: it always fits, alone if need be.
    """

    def __init__(self, largest: int) -> None:
        self._whole = self._free = max(largest + largest // 4, _ROOM)
        self._changed = Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and hold them."""
        size = min(size, self._whole)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


def _write_accounts(
    out: Path, rows: Sequence[accounts.Row], shard: Shard | None, missing: int
) -> None:
    """`files.csv` and the report; shards write their own table and merge all that are there."""
    with FileLock(out / ".report.lock"):
        manifest.write_files_csv(out / manifest.name_of(shard, "files", ".csv"), rows)
        if shard is not None:
            accounts.merge_shards(out, shard[1])
            manifest.merge(out)
        listed = accounts.read(out)
        if shard is not None:
            missing = sum(row["reason"] == "MISSING_FILE" for row in listed)
        report.write(out, manifest.read_all(out), listed, missing=missing)


def _tell(found: dict[str, int], counts: dict[str, int], out: Path) -> None:
    console.say(
        f"files: {found['found']} found = {found['used']} used + {found['skipped']} skipped + "
        f"{found['rejected']} rejected"
        + (f"; {found['missing']} named by the DICOMDIR are not there" if found["missing"] else "")
    )
    console.say("series: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    console.say(f"report: {out / 'report.html'}")


def _dry_run(todo: Work, out: Path, resume: str, recipe: Recipe | None) -> Outcome:
    """Print what would be written and why not; nothing is written."""
    lines: list[dict[str, Any]] = []
    for stack in (stack for job in todo.jobs for stack in job.plans):
        series = stack.series
        shape = " x ".join(str(size) for size in series.shape)
        console.say(f"{series.case}/{stack.key}: {series.status} {shape} {' '.join(series.codes)}")
        for message in series.messages:
            console.say(f"    {message}")
        lines.append({"status": series.status})
    fates = {fate.path for job in todo.jobs for plan in job.plans for fate in plan.fates}
    stray = sum(one.status == "rejected" and one.path not in fates for one in todo.files)
    if not lines and not stray:
        raise UsageError("SOURCE holds no DICOM image to convert")
    if recipe is not None:
        recipe.preview(todo.jobs)
    counts = manifest.counts(lines, manifest.SERIES_STATUSES)
    code = _judged(lines, counts, stray)
    return Outcome(code, {"out": str(out), "counts": counts, "exit_code": code, "resume": resume})
