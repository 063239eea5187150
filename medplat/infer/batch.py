"""All cases of a source: choose, leave what is unchanged, run the rest, keep the manifest.

The parent owns the manifest and never imports torch; the model is loaded when the first case needs
it, so a run that changes nothing loads none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from medplat import __version__, console, nifti
from medplat.dicom import select
from medplat.dicom.codes import CODES
from medplat.dicom.header import Entry
from medplat.dicom.source import open_entry
from medplat.errors import DataError, Refused
from medplat.infer import outputs, sources
from medplat.infer.crew import Crew
from medplat.infer.jobs import Job, Result, Study, Take
from medplat.infer.worker import Probe, Setup
from medplat.manifest import Line, Manifest

TRIED_AGAIN = frozenset({"OOM", "WRITE_FAILED", "INPUT_CHANGED", "INTERNAL"})
"""Failures of the surroundings, not of the case: the same command tries these again."""


@dataclass(frozen=True)
class Batch:
    """One run over one source.

    Attributes:
        setup: Model and options, as the worker gets them.
        out: Where results go.
        record: The manifest of this run.
        workflow_sha256: Of the model's stored workflow.
        timeout: Seconds for one case.
    """

    setup: Setup
    out: Path
    record: Manifest
    workflow_sha256: str
    timeout: float


def run(batch: Batch, studies: Iterable[Study], on_ready: Callable[[Probe], None]) -> list[str]:
    """Bring every case to an end and into the manifest.

    Args:
        batch: What to do.
        studies: The cases, in order.
        on_ready: Called once the model is loaded, if it is.

    Returns:
        The cases that were run or refused now; the others were left as they are.
    """
    known = {str(line["case"]): line for line in batch.record.lines().values()}
    redone: list[str] = []

    def on_end(job: Job, result: Result) -> None:
        if result.status == "failed" and not result.outputs:
            outputs.write_failure(job, result, batch.setup.name)
        batch.record.append(_line(batch, job, result))
        redone.append(job.case)
        console.say(f"{job.case}: {_ended(result)}")

    crew = Crew(batch.setup, batch.timeout, on_end, on_ready)
    try:
        for study in studies:
            before = known.get(study.case)
            try:
                job = with_digests(batch, choose(batch, study))
            except Refused as error:
                _refuse(batch, study, error, before, redone)
                continue
            _say_choice(study, job)
            if _settled(batch, job, before):
                _leave(batch, job, before or {})
                continue
            outputs.clear(job.folder)
            crew.submit(job)
        crew.finish()
    finally:
        crew.stop()
    return redone


def refused_status(study: Study) -> str:
    """What a study that is not run is: "skipped" where no series of it was meant for a volume."""
    only_skipped = bool(study.series) and all(one.status == "skipped" for one in study.series)
    return "skipped" if only_skipped else "rejected"


def choose(batch: Batch, study: Study) -> Job:
    """Decide which series feeds which input.

    Raises:
        Refused: NO_INPUT, MISSING_INPUT or AMBIGUOUS_INPUT.
    """
    if not study.series:
        return _file_job(batch, study)
    if not any(one.status in ("converted", "warned") for one in study.series):
        raise select.NotChosen(*_why_none(study), _left_over(study))
    selection = select.choose(study.series, batch.setup.inputs)
    takes, used = [], {}
    plans = {id(one): plan for one, plan in zip(study.series, study.plans, strict=False)}
    for name, chosen in selection.chosen.items():
        plan = plans.get(id(chosen.series))
        image = None if plan or chosen.series.path is None else chosen.series.path
        takes.append(
            Take(
                name,
                plan,
                None if image is None else nifti.image_of(image, chosen.phase),
                chosen.phase,
            )
        )
        used[name] = {
            "series_uid": chosen.series.series_uid,
            "number": chosen.series.number,
            "description": chosen.series.description,
            "phase": chosen.phase,
            "why": chosen.reason,
        }
    first = selection.chosen[batch.setup.inputs[0].name].series
    return Job(
        study.case,
        study.patient,
        study.kind,
        tuple(takes),
        batch.out / study.case,
        _entries(takes),
        used,
        _named(study, selection.reasons),
        shape=first.shape[:3],
        spacing_mm=first.spacing_mm,
    )


def _file_job(batch: Batch, study: Study) -> Job:
    try:
        sources.check_images(study)
    except DataError as error:
        raise Refused("MISSING_INPUT", str(error)) from error
    takes = [Take(one.name, image=study.images[one.name]) for one in batch.setup.inputs]
    used = {
        one.name: {"file": one.image.path.name, "phase": one.image.phase}
        for one in takes
        if one.image is not None
    }
    folder = batch.out / study.case
    return Job(
        study.case, study.patient, study.kind, tuple(takes), folder, _entries(takes), used, {}
    )


def _entries(takes: Sequence[Take]) -> tuple[Entry, ...]:
    """Every file that the chosen inputs are read from, once."""
    found: dict[str, Entry] = {}
    for take in takes:
        if take.plan is not None:
            for frames in take.plan.frames:
                for frame in frames:
                    found[frame.entry.path] = frame.entry
        elif take.image is not None:
            for path in (take.image.path, nifti.sidecar_path(take.image.path)):
                if path.is_file():
                    status = path.stat()
                    shown = path.as_posix()
                    found[shown] = Entry(shown, path, None, status.st_size, status.st_mtime_ns)
    return tuple(found[path] for path in sorted(found))


def with_digests(batch: Batch, job: Job) -> Job:
    """The job with the digest of its bytes, and that of everything else that decides the outputs.

    Raises:
        Refused: TRUNCATED where a file cannot be read.
    """
    try:
        with ThreadPoolExecutor(max(1, batch.setup.workers)) as readers:
            digests = sorted(readers.map(_entry_sha256, job.entries))
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise Refused(
            "TRUNCATED", f"an input file cannot be read ({type(error).__name__})"
        ) from error
    choice = {name: [one.get("series_uid"), one["phase"]] for name, one in job.used.items()}
    settings = json.dumps(
        {
            "model": [batch.setup.name.name, batch.setup.name.version],
            "weights": batch.setup.name.weights_sha256,
            "workflow": batch.workflow_sha256,
            "choice": choice,
            "seg": batch.setup.seg,
            "medplat": __version__,
        },
        sort_keys=True,
    )
    return replace(
        job,
        input_sha256=hashlib.sha256("".join(digests).encode()).hexdigest(),
        settings_sha256=hashlib.sha256(settings.encode()).hexdigest(),
    )


def _entry_sha256(entry: Entry) -> str:
    with open_entry(entry) as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _settled(batch: Batch, job: Job, before: Mapping[str, Any] | None) -> bool:
    """Whether an earlier run settled this case for the same bytes, model and settings."""
    if before is None or before.get("input_sha256") != job.input_sha256:
        return False
    if before.get("settings_sha256") != job.settings_sha256:
        return False
    code = (before.get("error") or {}).get("code", "")
    if code in TRIED_AGAIN or (code == "TIMEOUT" and batch.timeout > before.get("timeout_s", 0)):
        return False
    return outputs.intact(batch.out, before.get("outputs", []))


def _leave(batch: Batch, job: Job, before: Mapping[str, Any]) -> None:
    if before["status"] in ("done", "unchanged"):
        batch.record.append({**before, "status": "unchanged"})
        console.say(f"{job.case}: unchanged")
        return
    error = before["error"]
    console.say(
        f"{job.case}: {before['status']} before, with the same input and settings: "
        f"{error['code']}: {error['message']} (to try it again, delete its folder in OUT)"
    )


def _refuse(
    batch: Batch,
    study: Study,
    error: Refused,
    before: Mapping[str, Any] | None,
    redone: list[str],
) -> None:
    """Record a case for which no inputs could be chosen; the same refusal is not repeated."""
    left = _named(study, error.reasons) if isinstance(error, select.NotChosen) else {}
    job = Job(study.case, study.patient, study.kind, (), batch.out / study.case, (), {}, left)
    result = Result(refused_status(study), error.code, error.message)
    line = _line(batch, job, result)
    console.say(f"{study.case}: {_ended(result)}")
    for reason in left.values():
        console.say(f"    {reason}")
    same = before is not None and all(
        before.get(name) == line[name]
        for name in ("status", "error", "not_taken", "weights_sha256")
    )
    if same and outputs.intact(batch.out, (before or {}).get("outputs", [])):
        return
    outputs.write_failure(job, result, batch.setup.name)
    batch.record.append(_line(batch, job, result))
    redone.append(study.case)


def _line(batch: Batch, job: Job, result: Result) -> Line:
    name = batch.setup.name
    return {
        "case": job.case,
        "patient": job.patient,
        "status": result.status,
        "series": job.used,
        "not_taken": job.left,
        "input_sha256": job.input_sha256 or None,
        "settings_sha256": job.settings_sha256 or None,
        "model": name.name,
        "model_version": name.version or None,
        "weights_sha256": name.weights_sha256,
        "outputs": result.outputs,
        "numbers": result.numbers,
        "notes": result.notes,
        "seconds": result.seconds,
        "peak_rss_mb": result.peak_rss_mb,
        "timeout_s": batch.timeout,
        "error": {"code": result.code, "message": result.message} if result.code else None,
    }


def _ended(result: Result) -> str:
    if result.code:
        return f"{result.status}: {result.code}: {result.message}"
    numbers = ", ".join(
        f"{name} {value:.4g}" for name, value in result.numbers.items() if value is not None
    )
    stages = ", ".join(f"{name} {value:.1f}" for name, value in result.seconds.items())
    spent = sum(result.seconds.values())
    notes = "".join(f"; {note}" for note in result.notes)
    return f"done in {spent:.1f} s ({stages}): {numbers}{notes}"


def _say_choice(study: Study, job: Job) -> None:
    for reason in choice_lines(study, job):
        console.say(reason)


def choice_lines(study: Study, job: Job) -> list[str]:
    """Which series was taken for which input, and why each other one was not."""
    if not study.series:
        return []
    lines = []
    for name, one in job.used.items():
        number = "without number" if one["number"] is None else one["number"]
        described = f" '{one['description']}'" if one["description"] else ""
        lines.append(f"{job.case}: {name} = series {number}{described} ({one['why']})")
    return lines + [f"    {reason}" for reason in job.left.values()]


def _named(study: Study, reasons: Mapping[str, str]) -> dict[str, str]:
    """The reasons by series UID, each with the series' number and description before it."""
    names = {one.series_uid: select.name(one) for one in study.series}
    return {uid: f"{names.get(uid, 'a series')}: {why}" for uid, why in reasons.items()}


def _left_over(study: Study) -> dict[str, str]:
    return {
        one.series_uid: f"it was {one.status} ({', '.join(one.codes) or 'no code'})"
        for one in study.series
    }


def _why_none(study: Study) -> tuple[str, str]:
    """The code that all rejected series share, else NO_INPUT; and a sentence."""
    rejected = [one for one in study.series if one.status in ("rejected", "failed")]
    codes = {next((code for code in one.codes if _rejects(code)), "NO_INPUT") for one in rejected}
    named = [
        f"{select.name(one)}: {(one.messages or one.codes or ('no reason is known',))[0]}"
        for one in (rejected or study.series)
    ]
    more = f"; and {len(named) - 3} more" if len(named) > 3 else ""
    what = "no series of the study can be used"
    return codes.pop() if len(codes) == 1 else "NO_INPUT", f"{what}: {'; '.join(named[:3])}{more}"


def _rejects(code: str) -> bool:
    return code in CODES and CODES[code].verdict == "rejected"
