"""`medplat infer`: a registered model over a whole export, and the results back."""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from medplat import console, manifest, pseudonym
from medplat.commands import Outcome, infer_overlay
from medplat.errors import MedplatError, Refused, UsageError
from medplat.infer import batch, estimate, sources, table
from medplat.infer.batch import Batch
from medplat.infer.crew import Crew
from medplat.infer.jobs import ModelName, SegKind, Study
from medplat.infer.worker import Probe, Setup
from medplat.report import infer as report
from medplat.workflow.schema import TrainWorkflow

if TYPE_CHECKING:
    from medplat.track.registry import Fetched

Shard = tuple[int, int]


@dataclass(frozen=True)
class _Model:
    fetched: Fetched
    workflow: TrainWorkflow
    text: str


def run(
    model: str,
    source: Path,
    out: Path,
    *,
    project: Path,
    prompts: Sequence[str] = (),
    seg: SegKind = "labelmap",
    workers: int = 1,
    executor: str = "local",
    shard: Shard | None = None,
    timeout: float = 1800.0,
    dry_run: bool = False,
) -> Outcome:
    """Run a model over every case of SOURCE.

    Args:
        model: models:/name@alias, models:/name/3, runs:/ID or a model folder.
        source: A DICOM export, what `medplat convert` wrote, NIfTI files or pictures.
        out: Output folder; cases that are unchanged in it are left as they are.
        project: Project folder, which holds the salt and the tracking store.
        prompts: For grounding models, which are not built yet.
        seg: What seg.dcm is.
        workers: Threads that read.
        executor: "local".
        shard: (I, N): only the studies whose UID hash modulo N is I - 1.
        timeout: Seconds that one case may take.
        dry_run: Say what would be done and what it would need; write nothing.

    Returns:
        Exit code and `{out, counts, exit_code, resume}`.

    Raises:
        MedplatError: The options, the model or SOURCE cannot be used.
    """
    _check(source, out, prompts, executor)
    chosen = _fetch(model, project)
    pseudonyms = pseudonym.load(project)
    pseudonym.check_fingerprint(out, pseudonyms, record=not dry_run)
    resume = _command(model, source, out, seg, workers, shard, timeout, project)
    inputs = chosen.workflow.inputs
    found = sources.find(source, inputs, pseudonyms, workers=workers, shard=shard)
    dicom = found.kind == "dicom" and chosen.workflow.task.kind == "segment"
    work = _batch(chosen, out, seg, dicom, workers, shard, timeout)
    _announce(chosen, found)
    if dry_run:
        return _dry_run(work, found.studies, chosen.workflow, resume)
    with console.resume_line(resume), manifest.locked(out, shard):
        redone = batch.run(work, found.studies, _say_probe)
        code, counts = _conclude(work, chosen, out, shard)
        if redone:
            _track(chosen, work, counts, project)
    return Outcome(code, {"out": str(out), "counts": counts, "exit_code": code, "resume": resume})


def _check(source: Path, out: Path, prompts: Sequence[str], executor: str) -> None:
    if executor != "local":
        raise UsageError("--executor ray is not built yet: leave it out, or use --shard")
    if prompts:
        raise UsageError("--prompt is for grounding models, which are not built yet: leave it out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} lies inside {source}: choose an output folder beside it")
    for path in sorted(out.glob("manifest*.jsonl")) if out.is_dir() else ():
        if any(
            "series_uid" in line for line in manifest.Manifest(path, ("case",)).lines().values()
        ):
            raise UsageError(f"{out} holds a conversion: choose another output folder")


def _fetch(model: str, project: Path) -> _Model:
    from medplat.track import registry
    from medplat.workflow import read as workflow_read

    fetched = registry.fetch(model, project)
    path = fetched.folder / "workflow.yaml"
    text = path.read_text(encoding="utf-8")
    workflow = workflow_read.read_text(text, str(path), kind="train", plugins=False)
    assert isinstance(workflow, TrainWorkflow)
    return _Model(fetched, workflow, text)


def _batch(
    chosen: _Model,
    out: Path,
    seg: SegKind,
    dicom: bool,
    workers: int,
    shard: Shard | None,
    timeout: float,
) -> Batch:
    from medplat.track import model_folder

    fetched = chosen.fetched
    setup = Setup(
        folder=fetched.folder,
        name=ModelName(fetched.name, fetched.version or "", fetched.weights_sha256),
        inputs=chosen.workflow.inputs,
        seg=seg,
        dicom=dicom,
        workers=workers,
        load=model_folder.read,
        overlay=infer_overlay.draw,
    )
    record = manifest.Manifest(out / manifest.name_of(shard), manifest.CASE_KEY)
    return Batch(setup, out, record, hashlib.sha256(chosen.text.encode()).hexdigest(), timeout)


def _command(
    model: str,
    source: Path,
    out: Path,
    seg: str,
    workers: int,
    shard: Shard | None,
    timeout: float,
    project: Path,
) -> str:
    """The line that resumes this run: the same command."""
    from medplat import paths

    words = ["medplat", "infer", "-m", model, "-i", str(source), "-o", str(out)]
    words += ["--seg", seg] if seg != "labelmap" else []
    words += ["--workers", str(workers)] if workers != 1 else []
    words += ["--shard", f"{shard[0]}/{shard[1]}"] if shard else []
    words += ["--timeout", f"{timeout:g}"] if timeout != 1800.0 else []
    words += ["--project", str(project)] if project.resolve() != paths.project() else []
    return shlex.join(words)


def _announce(chosen: _Model, found: sources.Found) -> None:
    fetched = chosen.fetched
    version = f" version {fetched.version}" if fetched.version else ""
    console.say(f"model: {fetched.name}{version}, weights {fetched.weights_sha256[:12]}")
    notes = f"; set aside: {', '.join(found.notes)}" if found.notes else ""
    console.say(f"cases: {len(found.studies)} ({found.kind}){notes}")


def _say_probe(probe: Probe) -> None:
    size = " x ".join(str(one) for one in probe.window) or "the whole image"
    spent = "" if probe.seconds is None else f" in {probe.seconds:.2f} s"
    console.say(
        f"model loaded on {probe.device}: {probe.batch} windows of {size}{spent}, "
        f"{probe.peak_rss_mb:.0f} MB"
    )


def _conclude(
    work: Batch, chosen: _Model, out: Path, shard: Shard | None
) -> tuple[int, dict[str, int]]:
    """Table and report over all shards; exit code and counts of this manifest.

    Raises:
        UsageError: No case of OUT holds anything that is meant for a model.
    """
    with FileLock(out / ".report.lock"):  # shards may end at the same time
        lines = manifest.read_all(out, manifest.CASE_KEY)
        table.write(out / "results.csv", lines, chosen.workflow)
        page = report.write(out, lines, table.columns(chosen.workflow))
    own = list(work.record.lines().values())
    counts = manifest.counts(own, manifest.CASE_STATUSES)
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.say(f"{told or 'no case'}; report: {page}, table: {out / 'results.csv'}")
    if shard is None and own and counts["skipped"] == len(own):
        raise UsageError(
            "SOURCE holds nothing to work on: its studies hold only localizers, single images "
            f"or reports, see {page}"
        )
    return manifest.exit_code(own), counts


def _track(chosen: _Model, work: Batch, counts: dict[str, int], project: Path) -> None:
    """Log the run with the model version as its input; a store that fails stops nothing."""
    fetched = chosen.fetched
    if fetched.model_id is None:
        return
    from medplat.track import runs, store

    try:
        tracked = runs.start(
            store.open_store(project),
            experiment=chosen.workflow.track.experiment,
            workflow_text=chosen.text,
            digest=work.workflow_sha256,
            kind="infer",
            tags={"medplat.model": fetched.name, "medplat.model_version": fetched.version or ""},
        )
    except MedplatError as error:
        console.warn(f"this run is not tracked: {error}")
        return
    tracked.log_input_model(fetched.model_id)
    tracked.log_metrics({f"cases_{name}": float(count) for name, count in counts.items()}, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest_digest.json"
        path.write_text(json.dumps(_digest(work, counts), indent=1) + "\n", encoding="utf-8")
        tracked.log_file(path)
    tracked.finish()


def _digest(work: Batch, counts: dict[str, int]) -> dict[str, Any]:
    """What may leave the site of a manifest: counts, codes and hashes; no name, UID or path."""
    lines = list(work.record.lines().values())
    codes = [(line.get("error") or {}).get("code") for line in lines]
    return {
        "counts": counts,
        "codes": {code: codes.count(code) for code in sorted({one for one in codes if one})},
        "inputs_sha256": sorted(line["input_sha256"] for line in lines if line["input_sha256"]),
        "outputs_sha256": sorted(one["sha256"] for line in lines for one in line["outputs"]),
    }


_ENDS = {"would run": "done", "skipped": "skipped"}


def _dry_run(
    work: Batch, studies: Sequence[Study], workflow: TrainWorkflow, resume: str
) -> Outcome:
    """Choice, grid, memory and time of each case; the model is loaded once to be timed."""
    probes: list[Probe] = []
    crew = Crew(work.setup, work.timeout, lambda job, result: None, probes.append)
    try:
        crew.load()
    finally:
        crew.stop()
    _say_probe(probes[0])
    cases: list[dict[str, Any]] = []
    for study in studies:
        try:
            job = batch.choose(work, study)
        except Refused as error:
            status = batch.refused_status(study)
            console.say(f"{study.case}: would be {status}: {error}")
            cases.append({"case": study.case, "status": status, "code": error.code})
            continue
        for line in batch.choice_lines(study, job):
            console.say(line)
        needs = estimate.estimate(job, probes[0], workflow) if job.shape else None
        said = "size unknown before reading" if needs is None else estimate.sentence(needs)
        console.say(f"{study.case}: {said}")
        more = {} if needs is None else needs._asdict()
        cases.append({"case": study.case, "status": "would run", "series": job.used, **more})
    counts = manifest.counts(cases, ("would run", "skipped", "rejected"))
    console.say(", ".join(f"{count} {name}" for name, count in counts.items()))
    code = manifest.exit_code({"status": _ENDS.get(one["status"], "rejected")} for one in cases)
    return Outcome(
        code,
        {
            "out": str(work.out),
            "counts": counts,
            "exit_code": code,
            "resume": resume,
            "dry_run": True,
            "cases": cases,
        },
    )
