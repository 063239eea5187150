"""Fixtures that all tests share: the real data beside the project, and a project folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker a core: more threads in each only wait for one another (2.4 times the CPU seconds).
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--realdata", default=None, help="folder of real data (default: ../shared/realdata)"
    )


def realdata_folder(config: pytest.Config) -> Path:
    given = config.getoption("--realdata")
    return Path(given) if given else ROOT.parent / "shared" / "realdata"


@pytest.fixture(scope="session")
def realdata_path(request: pytest.FixtureRequest) -> Path:
    return realdata_folder(request.config)


@pytest.fixture
def realdata(realdata_path: Path) -> Path:
    """The folder of real data; the test is skipped, and counted, where it is absent."""
    if not realdata_path.is_dir():
        pytest.skip(f"real data not found at {realdata_path}")
    return realdata_path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, which is also the current folder; no tracking server is set."""
    folder = tmp_path / "project"
    (folder / ".medplat").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if "real data not found" in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.write_line(
            f"REAL DATA ABSENT: {len(skipped)} tests skipped, "
            f"none found at {realdata_folder(terminalreporter.config)}",
            red=True,
        )
