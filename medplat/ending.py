"""How every verb ends: one JSON object or text on stdout, sentences on stderr, an exit code.

A bug leaves its traceback in a log without the exception's own words, which may hold identifiers.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from medplat import __version__, paths
from medplat.commands import Outcome
from medplat.errors import MedplatError, MissingExtra, WorkflowError

# The interpreter itself words these, from names in the code; others may quote a patient's data.
_ABOUT_CODE = (TypeError, AttributeError, NameError, ImportError)
_ML = ("torch", "monai", "lightning", "mlflow", "sklearn", "scipy", "safetensors", "matplotlib",
       "pandas", "psutil", "numba")  # fmt: skip


def run(group: click.Group, arguments: Sequence[str]) -> int:
    """Run a command line; print what it gives; return the exit code."""
    as_json = "--json" in arguments
    with _kept_clean(as_json):
        outcome = _outcome(group, arguments)
    try:
        if as_json:
            text = json.dumps(_plain(outcome.summary), indent=2, ensure_ascii=False)
            sys.stdout.buffer.write(text.encode() + b"\n")
        elif outcome.text:
            click.echo(outcome.text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is left to write, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return outcome.exit_code


def _outcome(group: click.Group, arguments: Sequence[str]) -> Outcome:
    """What the verb gives; every way to fail becomes an outcome too, its sentence printed."""
    try:
        with group.make_context("medplat", list(arguments)) as context:
            result = group.invoke(context)
        return result if isinstance(result, Outcome) else Outcome()
    except click.exceptions.Exit as end:
        return Outcome(end.exit_code)
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return _failed(error.exit_code, "UsageError", error.format_message())
    except (KeyboardInterrupt, click.Abort):
        _write("interrupted")
        return _failed(130, "Interrupted", "interrupted")
    except MedplatError as error:
        return _mended(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _ML:
            return _mended(MissingExtra(f"medplat {_verb(arguments)}", package))
        return _bug(error, group, arguments)
    except Exception as error:
        return _bug(error, group, arguments)


def _mended(error: MedplatError) -> Outcome:
    """An error that is the user's to mend: its sentences, and no traceback."""
    _write(str(error), prefix="" if isinstance(error, WorkflowError) else "medplat: ")
    outcome = _failed(error.exit_code, type(error).__name__, str(error))
    if isinstance(error, WorkflowError):
        outcome.summary["error"]["problems"] = error.problems
    return outcome


def _bug(error: Exception, group: click.Group, arguments: Sequence[str]) -> Outcome:
    """An error that is ours: one line, and a log that holds the traceback."""
    name = _verb(arguments)
    path = _log(error, name if name in group.commands else "unknown", _project(arguments))
    sentence = f"a bug in medplat ({type(error).__name__}): the traceback is in {path}"
    _write(sentence)
    outcome = _failed(1, type(error).__name__, sentence)
    outcome.summary["log"] = str(path)
    return outcome


def _failed(code: int, kind: str, message: str) -> Outcome:
    return Outcome(code, {"error": {"kind": kind, "message": message}, "exit_code": code})


def _log(error: BaseException, name: str, project: Path) -> Path:
    """Write the traceback; frames and types, no values and no words that hold data."""
    lines = [
        f"medplat {__version__} {name}, Python {platform.python_version()}, {platform.platform()}",
        "The messages of most exceptions are left out: they may hold identifiers.",
        "",
    ]
    for one in _chain(error):
        frames = traceback.extract_tb(one.__traceback__)
        lines += [f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n'
                  f"    {frame.line}" for frame in frames]  # fmt: skip
        raised = bool(frames) and (frames[-1].line or "").startswith("raise ")
        words = f": {one}" if isinstance(one, _ABOUT_CODE) and not raised else ""
        lines += [f"{type(one).__module__}.{type(one).__qualname__}{words}", ""]
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{name}-{os.getpid()}.log"
    try:
        folder = paths.state(project) / "logs"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text("\n".join(lines), encoding="utf-8")
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="medplat-")) / name
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _chain(error: BaseException) -> list[BaseException]:
    """The first cause first."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return chain[::-1]


def _verb(arguments: Sequence[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "")


def _project(arguments: Sequence[str]) -> Path:
    for index, word in enumerate(arguments):
        if word == "--project" and index + 1 < len(arguments):
            return Path(arguments[index + 1]).resolve()
        if word.startswith("--project="):
            return Path(word.partition("=")[2]).resolve()
    return paths.project()


def _write(text: str, prefix: str = "medplat: ") -> None:
    sys.stderr.write(f"{prefix}{text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def _kept_clean(wanted: bool) -> Iterator[None]:
    """Send whatever writes to stdout to stderr for a while, child processes and C code too."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _plain(value: Any) -> Any:
    """A value as JSON knows it: paths as text, what is not a finite number as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):
        return _plain(value.item())
    return value.as_posix() if isinstance(value, Path) else str(value)
