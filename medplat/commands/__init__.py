"""What each verb of the command line does: one `run(...) -> Outcome` each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a verb ended.

    Attributes:
        exit_code: Of the process (DESIGN section 3).
        summary: The object that `--json` prints.
        text: What stdout gets without `--json`.
    """

    exit_code: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    text: str = ""
