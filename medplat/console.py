"""What the user reads while a verb runs: always on stderr, so that stdout stays for `--json`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger("medplat")
_state = {"quiet": False}


def set_quiet(quiet: bool) -> None:
    """Switch `say` and `track` off or on (`-q`)."""
    _state["quiet"] = quiet


def say(text: str = "") -> None:
    """Print one line to stderr, unless `-q` was given."""
    if not _state["quiet"]:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def warn(text: str) -> None:
    """Print a warning to stderr, also under `-q`."""
    sys.stderr.write(f"warning: {text}\n")
    sys.stderr.flush()


def track(things: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Go through `things` with a progress bar on a terminal, silently elsewhere."""
    if _state["quiet"] or not sys.stderr.isatty():
        yield from things
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    yield from rich_track(things, description=what, total=total, console=console, transient=True)


@contextmanager
def resume_line(command: str) -> Iterator[None]:
    """Print, at the start and at the end of a run, the line that resumes it."""
    say(f"resume with: {command}")
    try:
        yield
    finally:
        say(f"resume with: {command}")
