"""What is built: the wheel's names, the source archive, both without a network."""

from __future__ import annotations

import configparser
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {"medplat", "medplat_datasets", "medplat_kernels", "medplat_workflows"}


@pytest.fixture
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_has_four_names_and_no_more(wheel: zipfile.ZipFile) -> None:
    names = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == TOP_LEVEL


def test_the_wheel_holds_every_source_file(wheel: zipfile.ZipFile) -> None:
    """A new file needs no list: what lies in the packages is in the wheel."""
    names = set(wheel.namelist())
    roots = {
        "medplat": ROOT / "medplat",
        "medplat_datasets": ROOT / "datasets" / "medplat_datasets",
        "medplat_kernels": ROOT / "kernels" / "medplat_kernels",
        "medplat_workflows": ROOT / "workflows",
    }
    wanted = {
        f"{package}/{path.relative_to(root).as_posix()}"
        for package, root in roots.items()
        for path in root.rglob("*")
        if path.is_file() and path.suffix not in {".pyc"} and "__pycache__" not in path.parts
    }
    assert len(wanted) > 50
    assert wanted - names == set()
    for package in ("medplat", "medplat_datasets", "medplat_kernels"):
        assert f"{package}/py.typed" in names


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    [name] = [one for one in wheel.namelist() if one.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["Name"] == "medplat"
    assert metadata["Requires-Python"] == ">=3.11"
    needs = metadata.get_all("Requires-Dist") or []
    core = [one for one in needs if "extra ==" not in one]
    assert any(one.startswith("pydicom") for one in core)
    assert not any(one.startswith(("torch", "monai", "mlflow", "lightning")) for one in core)
    [points] = [one for one in wheel.namelist() if one.endswith("entry_points.txt")]
    parsed = configparser.ConfigParser()
    parsed.read_string(wheel.read(points).decode())
    assert dict(parsed["console_scripts"]) == {"medplat": "medplat.cli:main"}


def test_the_source_archive_is_whole(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "medplat/cli.py",
        "datasets/medplat_datasets/__init__.py",
        "kernels/medplat_kernels/__init__.py",
        "workflows/train/unet_phantom.yaml",
        "docker/Dockerfile",
        "docker/compose.yaml",
        "tests/packaging/test_wheel.py",
    }
    assert wanted - names == set()
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)
