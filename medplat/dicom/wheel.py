"""Real DICOM files that lie inside the installed pydicom package; nothing is ever downloaded."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def files(*patterns: str) -> list[Path]:
    """Test files of the installed pydicom, sorted by path.

    Args:
        patterns: Shell patterns below its `data/test_files`, such as `dicomdirtests/98892001/*/*`.

    Returns:
        Those that are there; a slimmed installation may hold none.
    """
    folder = Path(str(resources.files("pydicom"))) / "data" / "test_files"
    return sorted({path for one in patterns for path in folder.glob(one) if path.is_file()})
