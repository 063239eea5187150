"""Rules of the house that a reader of one file cannot see broken."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("medplat", "datasets", "kernels")
MOST_LINES = 500
# Tables of data, not code.
TABLES = {"medplat/transform_table.py"}
HEAVY = {"torch", "monai", "lightning", "mlflow", "scipy", "sklearn", "numba", "pandas", "triton"}


def _files(*roots: str, suffix: str = ".py") -> list[Path]:
    return [path for root in roots for path in sorted((ROOT / root).rglob(f"*{suffix}"))]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _imports(path: Path) -> list[tuple[int, str]]:
    """Line and top-level name of every import, also of those inside functions."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.partition(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.lineno, node.module.partition(".")[0]))
    return found


def _calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def test_no_file_is_long() -> None:
    long = {
        _name(path): count
        for path in _files(*SOURCES, "tests")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
        and _name(path) not in TABLES
    }
    assert long == {}


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("mlflow", ("medplat/track/",)),
        ("pydicom", ("medplat/dicom/", "kernels/bench/")),
        ("highdicom", ("medplat/dicom/",)),
        ("triton", ("kernels/",)),
        ("pickle", ()),
        ("dill", ()),
        ("cloudpickle", ()),
        ("marshal", ()),
        ("shelve", ()),
        ("requests", ("medplat/track/",)),
        ("fcntl", ()),
    ],
)
def test_a_package_is_imported_only_where_it_may(package: str, homes: tuple[str, ...]) -> None:
    found = [
        f"{_name(path)}:{line}"
        for path in _files(*SOURCES)
        for line, name in _imports(path)
        if name == package and not _name(path).startswith(homes or ("nowhere",))
    ]
    assert found == []


def test_nothing_is_evaluated_or_unpickled() -> None:
    banned = {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.load", "print"}
    found = []
    for path in _files(*SOURCES):
        for call, name in _calls(path):
            words = {one.arg: ast.unparse(one.value) for one in call.keywords}
            unsafe_load = name == "torch.load" and words.get("weights_only") != "True"
            if name in banned or unsafe_load or words.get("shell") == "True":
                found.append(f"{_name(path)}:{call.lineno}: {name}")
    assert found == []


def test_archives_are_never_extracted_whole() -> None:
    found = [
        f"{_name(path)}:{call.lineno}"
        for path in _files(*SOURCES)
        for call, name in _calls(path)
        if name.endswith((".extractall", "unpack_archive"))
    ]
    assert found == []


def test_processes_are_spawned_never_forked() -> None:
    found = [
        f"{_name(path)}:{call.lineno}: {name}"
        for path in _files(*SOURCES)
        for call, name in _calls(path)
        if name in {"os.fork", "os.killpg", "os.setsid"}
        or (name.endswith("get_context") and ast.unparse(call) != f"{name}('spawn')")
    ]
    assert found == []


def test_the_sources_are_roots_and_not_packages() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_datasets_belongs_to_hugging_face() -> None:
    code = (
        "import importlib.util; spec = importlib.util.find_spec('datasets'); "
        "import sys; sys.stdout.write('' if spec is None else str(spec.origin or "
        "list(spec.submodule_search_locations)))"
    )
    # Plain `python -c` would put the current folder first; so does nobody who installs medplat.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    outside = ROOT.as_posix() not in Path(found).as_posix() if found else True
    assert outside or "site-packages" in found


def test_the_core_needs_no_deep_learning() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = {re.split(r"[\s<>=!~\[;]", one)[0].lower() for one in project["dependencies"]}
    assert core & HEAVY == set()
    ml = {re.split(r"[\s<>=!~\[;]", one)[0] for one in project["optional-dependencies"]["ml"]}
    assert {"torch", "monai", "lightning", "mlflow", "safetensors"} <= ml


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normal(line.partition("==")[0]) for line in lines if "==" in line}
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {_normal(re.split(r"[\s<>=!~\[;]", one)[0]) for group in groups for one in group}
    assert wanted - pinned == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_names_a_machine() -> None:
    """Paths of one machine have no place in a repository."""
    pattern = re.compile(r"(?<![\w.])(/root/|/home/(?!medplat)\w+/|[A-Z]:\\Users\\(?!me)\w+)")
    texts = [
        *_files(*SOURCES, "docker", "workflows", suffix=""),
        *(ROOT / name for name in ("Makefile", "pyproject.toml", "README.md", "constraints.txt")),
    ]
    found = [
        f"{_name(path)}: {match[0]}"
        for path in texts
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".html", ""}
        for match in pattern.finditer(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert found == []
