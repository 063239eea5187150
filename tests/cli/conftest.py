"""The command line in this process: exit code, stdout, stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from medplat import console, ending
from medplat.cli import cli


class Shown(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """Stdout, which must be one JSON object and nothing else."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def medplat(capfd: pytest.CaptureFixture[str]) -> Callable[..., Shown]:
    def run(*arguments: object) -> Shown:
        capfd.readouterr()
        code = ending.run(cli, [str(one) for one in arguments])
        console.set_quiet(False)
        return Shown(code, *capfd.readouterr())

    return run
