"""Files of a case, the results table, and what a case is said to need."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medplat.infer import case, estimate, outputs, sources, table
from medplat.infer.jobs import Job, ModelName
from medplat.infer.worker import Probe
from medplat.workflow.schema import TrainWorkflow

MODEL = ModelName("m", "2", "ab" * 32)


def workflow(task: dict[str, Any], **more: Any) -> TrainWorkflow:
    base = {"kind": "train", "dataset": {"name": "folder"}, "model": {"name": "unet"}}
    return TrainWorkflow.model_validate(base | {"task": task} | more)


CLASSIFY = workflow({"kind": "classify", "classes": ("no", "yes")})
SEGMENT = {"kind": "segment", "labels": ({"name": "a", "value": 1},)}


def job(folder: Path, **more: Any) -> Job:
    return Job("one", "p", "nifti", (), folder, (), {}, {}, "in", "set", **more)


def test_classify_outputs_and_table(tmp_path: Path) -> None:
    result = outputs.write_classify(
        job(tmp_path / "one"), np.array([0.25, 0.75]), CLASSIFY.task, MODEL  # type: ignore[arg-type]
    )  # fmt: skip
    assert result.numbers == {"no_probability": 0.25, "yes_probability": 0.75}
    content = json.loads((tmp_path / "one" / "result.json").read_text())
    assert content["probabilities"] == {"no": 0.25, "yes": 0.75}
    assert content["model"] == {"name": "m", "version": "2", "weights_sha256": "ab" * 32}
    assert outputs.intact(tmp_path, result.outputs)
    lines = [
        {"case": "=b", "status": "failed", "error": {"code": "OOM"}, "model": "m"},
        {"case": "a", "status": "done", "numbers": result.numbers, "error": None},
    ]
    table.write(tmp_path / "results.csv", lines, CLASSIFY)
    rows = list(csv.reader((tmp_path / "results.csv").read_text().splitlines()))
    assert rows[0][-2:] == ["no_probability", "yes_probability"]
    assert [row[0] for row in rows[1:]] == ["'=b", "a"]
    assert rows[2][-2:] == ["0.25", "0.75"]
    assert rows[1][3] == "OOM"


def test_a_changed_output_is_not_intact_and_clearing_leaves_nothing(tmp_path: Path) -> None:
    one = job(tmp_path / "one")
    result = outputs.write_classify(one, np.array([1.0, 0.0]), CLASSIFY.task, MODEL)  # type: ignore[arg-type]
    assert not outputs.intact(tmp_path, [])
    (one.folder / "result.json").write_text("{}")
    assert not outputs.intact(tmp_path, result.outputs)
    (one.folder / ".seg.dcm.tmp").write_bytes(b"torn")
    outputs.clear(one.folder)
    assert not one.folder.exists()
    outputs.clear(one.folder)


@pytest.mark.parametrize(
    ("error", "stage", "code"),
    [
        (MemoryError(), "predict", "OOM"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "prepare", "OOM"),
        (RuntimeError("CUDA out of memory"), "predict", "OOM"),
        (OSError(28, "No space left on device", "/secret/path"), "write", "WRITE_FAILED"),
        (OSError(5, "Input/output error", "/secret/path"), "read", "TRUNCATED"),
        (KeyError("x"), "prepare", "TRANSFORM_FAILED"),
        (ValueError("y"), "predict", "MODEL_FAILED"),
        (ValueError("y"), "write", "INTERNAL"),
    ],
)
def test_every_failure_has_a_code_and_no_path(error: Exception, stage: str, code: str) -> None:
    found = case.failure(error, stage)
    assert found.code == code
    assert found.status == ("rejected" if code == "TRUNCATED" else "failed")
    assert "secret" not in found.message


def test_estimate_counts_windows_after_the_spacing() -> None:
    flow = workflow(
        SEGMENT,
        transforms=({"Spacingd": {"keys": ["image"], "pixdim": [2, 2, 2]}},),
        infer={"overlap": 0.5, "batch_size": 4},
    )
    probe = Probe("cpu", (32, 32, 32), 4, 0.5, 1000.0, 20)
    one = job(Path("x"), shape=(100, 80, 30), spacing_mm=(2.0, 1.0, 4.0))
    found = estimate.estimate(one, probe, flow)
    assert found.grid == (100, 40, 60)
    assert found.windows == 6 * 2 * 3  # ceil((size - 32) / 16) + 1
    assert found.seconds == pytest.approx(0.5 * 9)
    assert found.peak_rss_mb == pytest.approx(1000 + 100 * 40 * 60 * 20 / 1e6, abs=0.1)
    assert "36 windows" in estimate.sentence(found)


def test_every_study_is_in_exactly_one_shard() -> None:
    uids = [f"1.2.{n}" for n in range(50)]
    for parts in (1, 2, 3, 7):
        homes = [
            [sources.share(uid, (part, parts)) for part in range(1, parts + 1)] for uid in uids
        ]
        assert all(sum(home) == 1 for home in homes)
