"""The container files: checked as text, and their steps run in an empty virtual environment.

No container engine is needed. `hadolint` reads the Dockerfiles, `check-jsonschema` holds the schema
of the compose specification; both work without a network.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")
COMPOSE = ROOT / "docker" / "compose.yaml"
BIN = "Scripts" if os.name == "nt" else "bin"


def steps(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, continued lines joined, comments left out."""
    lines = (ROOT / "docker" / name).read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = text.replace("\\\n", " ").splitlines()
    found = [line.split(maxsplit=1) for line in joined if line.strip()]
    return [(instruction, " ".join(rest.split())) for instruction, rest in found]


def _of(name: str, instruction: str) -> list[str]:
    return [rest for found, rest in steps(name) if found == instruction]


def _installs(name: str) -> list[str]:
    return [rest for rest in _of(name, "RUN") if "pip install" in rest]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(COMPOSE.read_text(encoding="utf-8"))
    return loaded


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_linter_finds_nothing(name: str) -> None:
    command = [_tool("hadolint"), "--no-color", str(ROOT / "docker" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_fits_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(COMPOSE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_schema_check_can_fail(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text("services: {a: {imagee: b}}\n", encoding="utf-8")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(broken)], capture_output=True, text=True, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_pinned_and_run_without_rights(name: str) -> None:
    [image] = _of(name, "FROM")
    assert image.partition(":")[2] not in ("", "latest")
    [install] = _installs(name)
    commands = [part for part in install.split("&&") if "pip install" in part]
    assert all("-c constraints.txt" in command for command in commands)
    found = [instruction for instruction, _ in steps(name)]
    assert _of(name, "USER") == ["1000:1000"]
    assert found.index("USER") > max(i for i, one in enumerate(found) if one == "RUN")
    copied = {part for rest in _of(name, "COPY") for part in rest.split()}
    assert all((ROOT / part).exists() for part in copied - {"./"})


def test_both_images_install_the_same() -> None:
    assert _installs("Dockerfile") == _installs("Dockerfile.cpu")
    assert _of("Dockerfile", "COPY") == _of("Dockerfile.cpu", "COPY")
    assert _of("Dockerfile", "ENTRYPOINT") == _of("Dockerfile.cpu", "ENTRYPOINT")


def test_nothing_listens_beyond_this_machine(compose: dict[str, Any]) -> None:
    published = [port for one in compose["services"].values() for port in one.get("ports", ())]
    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)


def test_there_is_no_default_password(compose: dict[str, Any]) -> None:
    assert compose["secrets"] == {"database_password": {"environment": "MEDPLAT_DATABASE_PASSWORD"}}
    for service in compose["services"].values():
        for key, value in (service.get("environment") or {}).items():
            assert "PASSWORD" not in key or value == "/run/secrets/database_password"
    text = COMPOSE.read_text(encoding="utf-8")
    assert "MEDPLAT_DATABASE_PASSWORD:-" not in text
    assert "://medplat:" not in text


def test_services_are_watched_and_keep_their_data(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("database", "tracking"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"
    for name in ("tracking", "medplat", "medplat-cuda"):
        assert services[name]["user"] == "1000:1000"
        assert services[name]["cap_drop"] == ["ALL"]
        waits = list(services[name]["depends_on"].values())
        assert waits == [{"condition": "service_healthy"}]
    named = set(compose["volumes"])
    assert named == {"database", "artifacts", "project"}
    used = {one.partition(":")[0] for s in services.values() for one in s.get("volumes", ())}
    assert named <= used
    for service in services.values():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


@dataclass(frozen=True)
class Installed:
    """The result of a Dockerfile's steps: programs on a PATH, and the folder that stands for /."""

    programs: Path
    root: Path
    environment: dict[str, str]

    def run(self, *command: str, limit: int = 300) -> subprocess.CompletedProcess[str]:
        program = str(self.programs / command[0])
        return subprocess.run(
            [program, *command[1:]],
            cwd=self.root / "project",
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """An empty virtual environment after the COPY and `pip install` steps of Dockerfile.cpu.

    Where packages come from is left to this machine's own pip settings.
    """
    root = tmp_path_factory.mktemp("image")
    venv.create(root / "venv", with_pip=True)
    programs = root / "venv" / BIN
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    for name in ("PYTHONPATH", "MLFLOW_TRACKING_URI", "VIRTUAL_ENV"):
        environment.pop(name, None)
    environment["OMP_NUM_THREADS"] = "2"
    folder = root
    for instruction, rest in steps("Dockerfile.cpu"):
        if instruction == "WORKDIR":
            folder = root / rest.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif instruction == "ENV":
            pairs = dict(part.split("=", 1) for part in rest.split())
            environment |= {key: one for key, one in pairs.items() if not key.startswith("PIP_")}
        elif instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                _copy(ROOT / source, folder / target / ("" if target != "./" else source))
        elif instruction == "RUN" and "pip install" in rest:
            done = subprocess.run(
                ["/bin/sh", "-ec", rest],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shutil.rmtree(root / "src")  # what runs is what was installed
    yield Installed(programs, root, environment)
    shutil.rmtree(root / "venv", ignore_errors=True)  # gigabytes


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_entry_steps_run(installed: Installed) -> None:
    [entry] = (json.loads(rest) for rest in _of("Dockerfile.cpu", "ENTRYPOINT"))
    [arguments] = (json.loads(rest) for rest in _of("Dockerfile.cpu", "CMD"))
    shown = installed.run(*entry, *arguments)
    assert shown.returncode == 0, shown.stderr
    assert "convert" in shown.stdout
    doctor = installed.run(*entry, "doctor", "--json")
    assert doctor.returncode == 0, doctor.stderr
    listed = installed.run(*entry, "list", "models", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "wau_unet" in listed.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_is_installed_is_what_the_constraints_say(installed: Installed) -> None:
    frozen = installed.run("python", "-m", "pip", "list", "--format", "json")
    versions = {_normal(one["name"]): one["version"] for one in json.loads(frozen.stdout)}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    allowed = {_normal(name): version for name, version in pinned.items()}
    own = {"medplat", "pip", "setuptools"}
    free = {name for name in versions.keys() - allowed.keys() - own if not _from_torch(name)}
    assert free == set()
    different = {
        name: version
        for name, version in versions.items()
        if name in allowed and version.partition("+")[0] != allowed[name]
    }
    assert different == {}


def _normal(name: str) -> str:
    return name.replace("_", "-").replace(".", "-").lower()


def _from_torch(name: str) -> bool:
    """torch pins these itself where it brings CUDA."""
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"


@pytest.fixture
def tracking(installed: Installed, compose: dict[str, Any], tmp_path: Path) -> Iterator[int]:
    """The tracking service's own command, on a free port and an SQLite file."""
    service = compose["services"]["tracking"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    [command] = service["command"]
    for old, new in (
        ("$$", "$"),
        ("/run/secrets/database_password", str(tmp_path / "password")),
        ("postgresql+psycopg2://medplat@database:5432/mlflow", f"sqlite:///{tmp_path}/mlflow.db"),
        ("--host 0.0.0.0 --port 5000", f"--host 127.0.0.1 --port {port}"),
        ("127.0.0.1:5000", f"127.0.0.1:{port}"),
    ):
        assert old in command
        command = command.replace(old, new)
    (tmp_path / "password").write_text("not used by SQLite", encoding="ascii")
    environment = installed.environment | service["environment"]
    environment["ARTIFACTS"] = str(tmp_path / "artifacts")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*service["entrypoint"], command],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _await(port, process, tmp_path / "log")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        if _status(port, f"127.0.0.1:{port}", "/health") == 200:
            return
        time.sleep(0.5)
    pytest.fail(log.read_text(encoding="utf-8")[-3000:])


def _status(port: int, host: str, path: str) -> int:
    """Status of an answer to a request that names this host; 0 for none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with opener.open(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_tracking_command_serves_its_neighbours_only(tracking: int) -> None:
    experiments = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert _status(tracking, f"127.0.0.1:{tracking}", experiments) == 200
    assert _status(tracking, "tracking:5000", experiments) == 200
    assert _status(tracking, "evil.example", experiments) == 403


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_runs_from_the_wheel_outside_the_repository(installed: Installed) -> None:
    done = installed.run("medplat", "demo", "--out", "demo-out", "--json", limit=900)
    assert done.returncode == 0, done.stderr[-3000:]
    json.loads(done.stdout)
    out = installed.root / "project" / "demo-out"
    assert list(out.rglob("report.html"))
