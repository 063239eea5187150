"""Another author's package, installed with pip: found by entry point, checked, its faults named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "third_party"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
         "--no-build-isolation", "--target", str(target), str(PACKAGE)],
        check=True,
    )  # fmt: skip
    return target


def check(installed: Path, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medplat", "check", "--plugin", name, "--json"],
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_sound_plugin_of_another_package_passes(installed: Path) -> None:
    done = check(installed, "lesion_net")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["ok"]
    assert any("parameters of 2-D: 15,914" in one for one in shown["results"])


def test_every_fault_of_a_broken_one_is_named(installed: Path) -> None:
    done = check(installed, "lesion_net_broken")
    assert done.returncode == 2
    message = json.loads(done.stdout)["error"]["message"]
    for fault in (
        "no gradient but zero reaches never_moved",
        "a case's logits depend on its batch",
        "logits are (2, 3, 32, 47), not (2, 3, 32, 48)",
        "the state dict holds what is no tensor and needs a pickle: _extra_state",
    ):
        assert fault in message, fault
