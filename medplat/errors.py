"""Errors that a user can act on. Anything else that is raised is a bug in medplat (exit code 1).

MedplatError               exit 2: what is wrong, where, what to do; one sentence each
├── UsageError             the command line, or nothing to work on in SOURCE
├── WorkflowError          every mistake of a workflow, each as path:line:col: key: what
├── MissingExtra           an optional dependency is not installed; names the command
├── PluginError            a plugin is unknown, clashes or breaks the contract
├── ModelError             a model folder or registry entry cannot be used
├── DataError              a data set or split cannot be used
└── Refused                one series or case: carries a code; the rest goes on (exit 3 or 4)
"""

from __future__ import annotations


class MedplatError(Exception):
    """Base of all errors that are the user's to mend."""

    exit_code = 2


class UsageError(MedplatError):
    """Wrong usage, or nothing to work on in SOURCE."""


class WorkflowError(MedplatError):
    """A workflow that cannot be run. `problems` holds one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        shown = problems[:20]
        more = len(problems) - len(shown)
        super().__init__("\n".join(shown + ([f"... and {more} more"] if more else [])))


class MissingExtra(MedplatError):
    """An optional dependency is absent.

    Args:
        what: What needs it, as the start of a sentence ("medplat train").
        package: The distribution that is missing ("torch").
        extra: The extra of medplat that brings it ("ml").
    """

    def __init__(self, what: str, package: str, extra: str = "ml") -> None:
        self.package = package
        super().__init__(
            f"{what} needs {package}, which is not installed: pip install 'medplat[{extra}]'"
        )


class PluginError(MedplatError):
    """A plugin is unknown, clashes with another, or breaks the contract of DESIGN section 5."""


class ModelError(MedplatError):
    """A model folder, checkpoint or registry entry cannot be used."""


class DataError(MedplatError):
    """A data set, a table or a split cannot be used."""


class Refused(MedplatError):
    """One series or case cannot be trusted or processed; the others go on.

    Args:
        code: Upper-case word of the table in `medplat.dicom.codes`, or of the infer manifest.
        message: One sentence with numbers and place, never a patient's name.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")
