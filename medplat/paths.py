"""Where shipped workflows, the project folder and the tracking store live; whole files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATE = ".medplat"


def workflows() -> Path:
    """Folder of the shipped workflow files: the checkout's, else the copy beside the package."""
    root = Path(__file__).resolve().parent.parent
    checkout = root / "workflows"
    if checkout.is_dir() and (root / "pyproject.toml").is_file():
        return checkout
    return root / "medplat_workflows"


def project(start: Path | None = None) -> Path:
    """Nearest folder from `start` upwards that holds `.medplat/`, else `start` itself."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / STATE).is_dir():
            return folder
    return here


def state(project_folder: Path) -> Path:
    """The project's `.medplat` folder, made if absent; it ignores itself in git."""
    folder = project_folder / STATE
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    return folder


def run_folder(project_folder: Path, run_id: str) -> Path:
    """`.medplat/runs/<run id>`, made if absent."""
    folder = state(project_folder) / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file all or not at all: gives a temporary name beside `path` to write to.

    Once the block has ended well, the file is on the disk and takes the place of `path`; else it is
    removed and what was at `path` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.tmp")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
