"""kill -9 in the middle of a conversion: the same command goes on, nothing is lost or torn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import convert_export as export
import nibabel as nib

from medplat.commands import convert


def test_a_killed_run_is_resumed(tmp_path: Path, project: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for series in range(1, 13):
        export.stack(source / str(series), 1, series, range(6))
    command = [
        sys.executable,
        "-c",
        "from medplat.cli import main; main()",
        "convert",
        str(source),
        str(out),
        "-q",
    ]
    manifest = out / "manifest.jsonl"
    environment = dict(
        os.environ, HTTP_PROXY="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9"
    )
    process = subprocess.Popen(command, cwd=project, env=environment)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if manifest.is_file() and manifest.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = [
        json.loads(line)
        for line in manifest.read_text().splitlines(keepends=True)
        if line[-1:] == "\n"
    ]
    assert 3 <= len(done) <= 12
    before = {
        one["outputs"][0]["path"]: (out / one["outputs"][0]["path"]).stat().st_mtime_ns
        for one in done
    }
    outcome = convert.run(source, out, project=project)
    assert outcome.summary["counts"]["converted"] == 12
    assert all((out / path).stat().st_mtime_ns == time_ for path, time_ in before.items())
    after = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(after) == 12
    undisturbed = convert.run(source, tmp_path / "fresh", project=project)
    assert undisturbed.summary["counts"] == outcome.summary["counts"]
    for path in out.glob("case-*/*"):
        assert path.read_bytes() == (tmp_path / "fresh" / path.relative_to(out)).read_bytes()
        if path.suffix == ".gz":
            assert nib.load(path).shape == (8, 6, 6)
    assert not list(out.glob("case-*/.*"))
