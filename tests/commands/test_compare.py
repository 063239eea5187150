"""`medplat compare` on stored runs whose tables of cases are known."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from medplat.commands import compare, compare_numbers
from medplat.errors import DataError, UsageError
from medplat.track import runs
from medplat.track.store import Store, open_store
from medplat.train.measure import write_cases


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield open_store(tmp_path_factory.mktemp("project"))


def add_run(store: Store, rows: list[dict], model: str = "unet") -> str:
    tags = {"medplat.model": model, "medplat.parameters": "88531"}
    run = runs.start(
        store, experiment="pair", workflow_text="kind: train\n", digest="0", kind="train", tags=tags
    )
    write_cases(rows, run.folder / "cases.csv")
    run.log_file(run.folder / "cases.csv")
    run.finish()
    return run.run_id


def segmented(shift: float, count: int = 30) -> list[dict]:
    generator = np.random.default_rng(0)
    dice = np.clip(generator.normal(0.8, 0.08, size=count), 0, 0.97)
    noise = np.random.default_rng(1).normal(0, 0.005, size=count)
    return [
        {
            "case": f"c{number}",
            "patient": f"p{number // 2}",
            "dice_a": float(dice[number] + shift + (noise[number] if shift else 0)),
            "hd95_mm_a": float(3 - 2 * dice[number]),
            "volume_ml_a": 1.0,
            "truth_ml_a": 1.0,
        }
        for number in range(count)
    ]


def test_table_picture_and_run(store):
    first, second = add_run(store, segmented(0.0)), add_run(store, segmented(0.02), "wau_unet")
    outcome = compare.run([first[:12], f"runs:/{second}"], project=store.project)
    found = outcome.summary["metrics"]
    assert list(found) == ["dice_a", "hd95_mm_a"]
    difference = found["dice_a"]["differences"][0]
    rows = [segmented(0.0), segmented(0.02)]
    wanted = np.mean([two["dice_a"] - one["dice_a"] for one, two in zip(*rows, strict=True)])
    assert difference["value"] == pytest.approx(wanted)
    assert 0.015 < difference["low"] < wanted < difference["high"] < 0.025
    assert (difference["n"], difference["patients"]) == (30, 15)
    mean = found["dice_a"]["means"][0]
    assert mean["high"] - mean["low"] > 3 * (difference["high"] - difference["low"])
    assert found["hd95_mm_a"]["differences"][0]["value"] == 0.0
    folder = Path(outcome.summary["run_dir"])
    with Image.open(folder / "comparison.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    with (folder / "comparison.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["what"] for row in table[:3]] == ["mean", "mean", "difference from the first"]
    stored = store.client.get_run(outcome.summary["run_id"])
    assert store.client.get_experiment(stored.info.experiment_id).name == "pair"
    assert stored.data.metrics["dice_a_2_minus_1"] == pytest.approx(wanted)
    names = {one.path for one in store.client.list_artifacts(outcome.summary["run_id"])}
    assert {"comparison.png", "comparison.csv"} <= names


def test_a_run_of_another_machine_is_paired_by_its_hashes(store):
    """Cases named after the patient are hashed in the store; then all tables come from there."""
    rows = [dict(row, case=f"{row['patient']}_{row['case']}") for row in segmented(0.0)]
    better = [dict(row, dice_a=row["dice_a"] + 0.01) for row in rows]
    first, second = add_run(store, rows), add_run(store, better)
    shutil.rmtree(store.project / ".medplat" / "runs" / second)
    outcome = compare.run([first, second], project=store.project)
    assert outcome.summary["cases"] == 30
    difference = outcome.summary["metrics"]["dice_a"]["differences"][0]
    assert difference["value"] == pytest.approx(0.01)


def test_what_cannot_be_compared(store):
    first = add_run(store, segmented(0.0))
    other = add_run(store, [dict(row, case="x" + row["case"]) for row in segmented(0.0)])
    moved = add_run(store, [dict(row, patient="p0") for row in segmented(0.0)])
    with pytest.raises(DataError, match="no case in common"):
        compare.run([first, other], project=store.project)
    with pytest.raises(DataError, match="of different patients"):
        compare.run([first, moved], project=store.project)
    with pytest.raises(UsageError, match="named twice"):
        compare.run([first, first], project=store.project)
    with pytest.raises(UsageError, match="not found"):
        compare.run([first, "f" * 32], project=store.project)
    with pytest.raises(UsageError, match="at least its first four"):
        compare.run([first, "ab"], project=store.project)


def test_only_common_cases_and_the_rest_is_said(capsys):
    tables = [{f"c{n}": {"case": f"c{n}", "patient": "p"} for n in range(k)} for k in (3, 2)]
    cases, _ = compare_numbers.common_cases(tables, ["first-run", "second-run"])
    assert cases == ["c0", "c1"]
    assert "run first-ru: 1 of its cases are not in all runs" in capsys.readouterr().err


def test_auc_with_ties_equals_scikit_learn():
    generator = np.random.default_rng(0)
    score = generator.integers(0, 8, size=60).astype(float)
    positive = generator.random(60) < 0.4
    assert compare_numbers.auc(positive, score) == pytest.approx(roc_auc_score(positive, score))
    assert np.isnan(compare_numbers.auc(np.zeros(60, bool), score))


def test_classifications_are_compared_by_auc_too():
    generator = np.random.default_rng(0)
    target = np.arange(40) % 2
    tables = []
    for weight in (1.0, 3.0):
        score = 1 / (1 + np.exp(-(weight * (target - 0.5) + generator.normal(size=40))))
        tables.append(
            {
                f"c{n}": {
                    "case": f"c{n}",
                    "patient": f"p{n}",
                    "target": str(target[n]),
                    "probability_well": str(1 - score[n]),
                    "probability_ill": str(score[n]),
                    "correct": str(float((score[n] > 0.5) == target[n])),
                }
                for n in range(40)
            }
        )
    cases = list(tables[0])
    found = {one.metric: one for one in compare_numbers.compare(tables, cases, cases)}
    assert list(found) == ["correct", "auc"]
    aucs = [
        roc_auc_score(target, [float(table[case]["probability_ill"]) for case in cases])
        for table in tables
    ]
    assert [mean.value for mean in found["auc"].means] == pytest.approx(aucs)
    difference = found["auc"].differences[0]
    assert difference.value == pytest.approx(aucs[1] - aucs[0])
    assert difference.low < difference.value < difference.high


def test_folds_joined_by_plus_count_as_one_run(store):
    rows = segmented(0.02)
    whole = add_run(store, segmented(0.0))
    folds = [add_run(store, rows[at::3]) for at in range(3)]
    joined = compare.run([whole, "+".join(folds)], project=store.project).summary
    single = compare.run([whole, add_run(store, rows)], project=store.project).summary
    assert joined["metrics"] == single["metrics"]
    assert joined["cases"] == 30
    assert joined["runs"] == [whole, "+".join(folds)]
    with pytest.raises(DataError, match="is in two of the joined runs"):
        compare.run([whole, f"{folds[0]}+{add_run(store, rows[:1])}"], project=store.project)
    with pytest.raises(UsageError, match="named twice"):
        compare.run([whole, f"{folds[0]}+{folds[0]}"], project=store.project)
