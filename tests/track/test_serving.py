"""`mlflow models serve` on a registered model: paths in, paths and numbers out."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import psutil
import pytest

from medplat.errors import DataError, ModelError
from medplat.track import pyfunc_entry, runs
from medplat.track.store import Store


def _source(folder: Path) -> Path:
    """A folder with one volume of odd size."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 1000, (11, 13, 9)).astype(np.int16)
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / "one.nii.gz")
    return folder


def test_a_row_that_fails_does_not_stop_the_others(
    project: Path, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medplat.commands import infer

    def run(model: str, source: Path, out: Path, **options: Any) -> None:
        if source.name == "broken":
            raise DataError(f"{source}: nothing to read")
        out.mkdir(parents=True)
        with (out / "results.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["case", "status", "lesion_ml"], ["case-1", "done", "1.5"]])

    monkeypatch.setattr(infer, "run", run)
    served = pyfunc_entry._load_pyfunc(str(make_model().folder))
    answer = served.predict(pd.DataFrame({"uri": ["fine", "broken"]}))
    assert list(answer["status"]) == ["done", "failed"]
    assert list(answer["lesion_ml"]) == ["1.5", ""]
    assert answer["message"][1] == "broken: nothing to read"
    assert Path(answer["out"][0]).parent.parent == project / ".medplat" / "served"


def test_a_folder_that_is_no_model_is_refused_when_loaded(project: Path) -> None:
    with pytest.raises(ModelError, match="not a model folder"):
        pyfunc_entry._load_pyfunc(str(project))


@pytest.fixture
def served(
    store: Store, make_model: Callable[..., Any], begin: Callable[..., runs.Run], tmp_path: Path
) -> Iterator[str]:
    """Address of a running model server."""
    run = begin()
    run.register(run.log_model(make_model().folder), "lesions", "candidate")
    run.finish()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", "models:/lesions@candidate", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--timeout", "900"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.uri, "OMP_NUM_THREADS": "1"}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # MLflow calls uvicorn by its name.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=store.project, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        _await(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.terminate()
        process.terminate()
        process.wait(30)


def _open(request: Any, limit: float) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=limit) as answer:
        body: bytes = answer.read()
    return body


def _await(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        try:
            _open(f"{uri}/health", 2)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(log.read_text(encoding="utf-8")[-3000:])


@pytest.mark.slow
def test_a_served_model_runs_the_same_inference(served: str, tmp_path: Path) -> None:
    source = _source(tmp_path / "in")
    body = json.dumps({"dataframe_records": [{"uri": str(source)}]}).encode()
    request = urllib.request.Request(
        f"{served}/invocations", body, {"Content-Type": "application/json"}
    )
    [row] = json.loads(_open(request, 280))["predictions"]
    assert row["status"] == "done", row
    assert float(row["lesion_ml"]) >= 0
    mask = nibabel.load(Path(row["out"]) / "seg.nii.gz")
    assert mask.shape == (11, 13, 9)
    assert np.allclose(mask.affine, np.diag([1.5, 1.5, 3.0, 1.0]))
    voxels = np.asarray(mask.dataobj)
    assert np.isclose(float(row["lesion_ml"]), np.count_nonzero(voxels) * 6.75e-3, atol=1e-3)
