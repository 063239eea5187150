"""Nothing that names a patient reaches the tracking folder: markers are planted and looked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medplat import pseudonym
from medplat.pseudonym import Pseudonyms
from medplat.track import privacy, runs
from medplat.track.store import Store
from medplat.workflow import read as workflow_read
from medplat.workflow import write as workflow_write

MARKER = "XYZZYMARKER"
WORKFLOW = f"""\
kind: train
dataset:
  name: folder
  root: /data/{MARKER}_Jane/1970-01-01
  index: {MARKER}.csv
  split: {{file: ../{MARKER}/split.csv}}
task:
  kind: segment
  labels: [{{name: lesion, value: 1}}]
model: {{name: wau_unet, channels: [4, 8], up: linear}}
"""


def _every_byte(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file()]


def test_planted_markers_do_not_reach_the_tracking_folder(
    store: Store, begin: Callable[..., runs.Run], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    workflow = workflow_read.read_text(WORKFLOW, "w.yaml", kind="train")
    text = workflow_write.dump(workflow)
    assert text.count(MARKER) == 3
    cases = tmp_path / "cases.csv"
    cases.write_text(
        f"case,patient,dice_lesion\n{MARKER}-1,{MARKER},0.5\nvisit2,{MARKER},0.75\n",
        encoding="utf-8",
    )
    run = begin(text=text)
    run.log_params(workflow.model_dump(mode="json", by_alias=True))
    run.log_params({"data": Path(f"/{MARKER}")})
    run.log_file(cases)
    run.log_dataset("folder", runs.dataset_digest([(MARKER, "v")]), "training")
    model = make_model()
    run.log_model(model.folder, metrics={"dice": 0.5})
    run.finish()

    stored = _every_byte(store.project / ".medplat" / "tracking")
    names = [name for name, _ in stored]
    assert any(name.endswith("cases.csv") for name in names)
    assert any(name.endswith("weights.safetensors") for name in names)
    holders = [name for name, data in stored if MARKER.encode() in data or MARKER in name]
    assert holders == []
    # The grep itself is able to find: the run's local folder keeps the whole workflow.
    assert MARKER.encode() in (run.folder / "workflow.yaml").read_bytes()


def test_no_path_of_this_machine_lies_in_a_model(
    store: Store, begin: Callable[..., runs.Run], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    run = begin()
    model_id = run.log_model(make_model().folder)
    run.finish()
    [root] = store.artifacts.rglob(f"{model_id}/artifacts")
    for name, data in _every_byte(root):
        assert str(tmp_path).encode() not in data, name
        assert b"file:///" not in data, name


def test_the_rest_of_a_workflow_is_kept() -> None:
    workflow = workflow_read.read_text(WORKFLOW, "w.yaml", kind="train")
    stored = privacy.without_paths(workflow_write.dump(workflow))
    again = workflow_read.read_text(stored, "stored.yaml", kind="train")
    assert again.model_copy(update={"dataset": None}) == workflow.model_copy(
        update={"dataset": None}
    )
    assert again.dataset.options["root"] == privacy.REMOVED


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("dataset.root", "exports", True),
        ("images", "images/*.nii.gz", False),
        ("images", "/abs/images/*.nii.gz", True),
        ("anything", "C:\\Users\\me", True),
        ("anything", "\\\\server\\share", True),
        ("anything", "../up", True),
        ("anything", "~/home", True),
        ("pattern", "(\\w+)_", False),
        ("evaluate.model", "models:/lesions@candidate", False),
        ("evaluate.model", "runs:/0a1b", False),
        ("evaluate.model", "studies/smith/best", True),
        ("model.name", "unet", False),
    ],
)
def test_what_counts_as_a_path(key: str, value: str, expected: bool) -> None:
    assert privacy.is_path(key, value) is expected


def test_case_tables_can_still_be_paired(tmp_path: Path) -> None:
    salt = Pseudonyms(b"s" * 32)
    path = tmp_path / "cases.csv"
    own = salt.patient("x", "")
    path.write_text(
        f'case,patient,note\np1_a,p1,"a, b"\nB,p2,\ncase-abcdefghij,{own},x\n', encoding="utf-8"
    )
    first = privacy.hash_cases(path, salt)
    assert first == privacy.hash_cases(path, salt)
    rows = list(csv.DictReader(io.StringIO(first)))
    assert [row["note"] for row in rows] == ["a, b", "", "x"]
    assert rows[0]["patient"] == salt.patient("p1", "")
    assert rows[0]["case"].startswith("case-")
    assert rows[1]["case"] == "B"
    assert rows[2]["patient"] == own
    assert rows[2]["case"] == "case-abcdefghij"
    other = privacy.hash_cases(path, Pseudonyms(b"t" * 32))
    assert other.splitlines()[1] != first.splitlines()[1]


def test_the_salt_stays_out_of_the_tracking_folder(
    store: Store, begin: Callable[..., runs.Run], tmp_path: Path
) -> None:
    cases = tmp_path / "cases.csv"
    cases.write_text("case,patient\na,b\n", encoding="utf-8")
    run = begin()
    run.log_file(cases)
    run.finish()
    pseudonym.load(store.project)
    salt = (store.project / ".medplat" / "salt").read_bytes().strip()
    assert len(salt) >= 32
    stored = _every_byte(store.project / ".medplat" / "tracking")
    assert all(salt not in data for _, data in stored)
