"""`medplat convert`: a PACS export to NIfTI volumes, with an account of every file."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from medplat import console, manifest, paths, pseudonym
from medplat.commands import Outcome
from medplat.commands import convert_accounts as accounts
from medplat.commands import convert_series as work
from medplat.commands.convert_plan import Shard, Work, plan
from medplat.commands.convert_series import Job, Options
from medplat.errors import UsageError
from medplat.report import convert as report

if TYPE_CHECKING:
    from medplat.workflow.schema import ConvertWorkflow


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
        labels: Not built yet.
        deidentify: Not built yet.
        split_phases: One 3-D file a phase.
        allow_shear: Convert sheared series, with a warning.
        resample: Not built yet.
        decisions: Not built yet.
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
    _not_built(labels=labels, deidentify=deidentify, resample=resample, decisions=decisions)
    if executor != "local":
        raise UsageError("--executor ray is not built yet: leave it out")
    _places(source, out, link_table)
    flow = _workflow(workflow, dataset, settings)
    options = Options(
        split_phases=split_phases or flow.convert.split_phases,
        allow_shear=allow_shear,
        gzip_level=flow.convert.gzip_level if gzip_level is None else gzip_level,
        suffix=".nii" if no_gzip else ".nii.gz",
        keep=tuple(sorted(set(keep))),
        transforms=flow.transforms,
    )
    pseudonyms = pseudonym.load(project)
    pseudonym.check_fingerprint(out, pseudonyms, record=not dry_run)
    many = workers or min(8, os.cpu_count() or 1)
    resume = _command(source, out, options, workflow, dataset, settings, link_table, shard)
    if project.resolve() != paths.project():
        resume += f" --project {shlex.quote(str(project))}"
    if dry_run:
        return _dry_run(plan(source, shard, many, options, pseudonyms), out, resume)
    with console.resume_line(resume), manifest.locked(out, shard):
        todo = plan(source, shard, many, options, pseudonyms, link_table)
        code, counts = _convert(todo, out, options, many, shard)
    return Outcome(code, {"out": str(out), "counts": counts, "exit_code": code, "resume": resume})


def _not_built(**given: object) -> None:
    for name, value in given.items():
        if value:
            raise UsageError(f"--{name} is not built yet: leave it out")


def _places(source: Path, out: Path, link_table: Path | None) -> None:
    if not source.exists():
        raise UsageError(f"{source} does not exist: give a folder, a .zip or a DICOMDIR")
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


def _workflow(path: Path | None, dataset: str | None, settings: Sequence[str]) -> ConvertWorkflow:
    from medplat import registry, transforms
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
    if path is None and not settings:
        return ConvertWorkflow(kind="convert")
    if path is None:
        read = workflow_read.read_text("kind: convert\n", "--set", settings, kind="convert")
    else:
        read = workflow_read.read(path, settings, kind="convert", plugins=False)
    assert isinstance(read, ConvertWorkflow)
    if read.transforms:
        transforms.compose(read.transforms)  # Refuses now what would fail on every series.
    return read


def _command(
    source: Path,
    out: Path,
    options: Options,
    workflow: Path | None,
    dataset: str | None,
    settings: Sequence[str],
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
    for kept in options.keep:
        words += ["--keep", kept]
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
) -> tuple[int, dict[str, int]]:
    """Do what is to be done, write the accounts; exit code and counts by status."""
    record = manifest.Manifest(out / manifest.name_of(shard), manifest.SERIES_KEY)
    record.path.touch()
    lines = record.lines()
    how = options.digest()
    waiting = [job for job in todo.jobs if not work.unchanged(job, lines, out, how)]
    if len(waiting) < len(todo.jobs):
        console.say(f"{len(todo.jobs) - len(waiting)} series are unchanged and left as they are")
    for line in _done(waiting, out, options, workers):
        record.append(line)
    work.tidy(waiting, out)
    holding = record.lines()
    rows = [row for job in todo.jobs for row in accounts.rows_of_series(job, holding)]
    rows += accounts.rows_of_others(todo.files, todo.orphans)
    found = accounts.check(rows, todo.files)
    _write_accounts(out, rows, shard, found["missing"])
    lines_now = manifest.current(holding.values())
    counts = manifest.counts(lines_now, manifest.SERIES_STATUSES)
    _tell(found, counts, out)
    stray = accounts.stray(rows, todo.jobs)
    if not lines_now and not stray:
        if shard is not None:
            return 0, counts
        raise UsageError("SOURCE holds no DICOM image to convert: files.csv says what it holds")
    code = manifest.exit_code(lines_now)
    if stray and code == 0:
        code = 3 if counts["converted"] + counts["warned"] else 4
    return code, counts


def _done(
    jobs: Sequence[Job], out: Path, options: Options, workers: int
) -> Iterator[manifest.Line]:
    """The manifest lines of the jobs as they end, `workers` at a time."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(work.convert, job, out, options) for job in jobs]
        try:
            ended = console.track(as_completed(futures), "series", total=len(futures))
            for number, future in enumerate(ended, start=1):
                for line in future.result():
                    shown = " ".join([line["status"], *line["codes"]])
                    console.say(f"[{number}/{len(jobs)}] {line['case']}/{line['stack']}: {shown}")
                    yield line
        finally:
            for future in futures:
                future.cancel()


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


def _dry_run(todo: Work, out: Path, resume: str) -> Outcome:
    """Print what would be written and why not; nothing is written."""
    lines: list[dict[str, Any]] = []
    for stack in (stack for job in todo.jobs for stack in job.plans):
        series = stack.series
        shape = " x ".join(str(size) for size in series.shape)
        console.say(f"{series.case}/{stack.key}: {series.status} {shape} {' '.join(series.codes)}")
        for message in series.messages:
            console.say(f"    {message}")
        lines.append({"status": series.status})
    if not lines:
        raise UsageError("SOURCE holds no DICOM image to convert")
    code = manifest.exit_code(lines)
    counts = manifest.counts(lines, manifest.SERIES_STATUSES)
    return Outcome(code, {"out": str(out), "counts": counts, "exit_code": code, "resume": resume})
