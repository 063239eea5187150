"""What each verb of the command line does: one `run(...) -> Outcome` each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a verb ended: its exit code, and the object that `--json` prints."""

    exit_code: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
