from __future__ import annotations

import csv
import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import convert_export as export

from medplat import nifti
from medplat.commands import Outcome, convert
from medplat.errors import UsageError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return export.export(tmp_path / "source")


def run(source: Path, project: Path, name: str = "out", **options: Any) -> tuple[Path, Outcome]:
    out = project.parent / name
    return out, convert.run(source, out, project=project, **{"workers": 2, **options})


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "files.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def images(out: Path) -> dict[str, bytes]:
    found = [*out.glob("case-*/*.nii*"), *out.glob("case-*/*.json")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(found)}


def test_the_whole_contract(source: Path, project: Path) -> None:
    out, outcome = run(source, project)
    assert outcome.exit_code == 3
    assert outcome.summary == {
        "out": str(out),
        "counts": {"converted": 3, "warned": 0, "skipped": 1, "rejected": 1, "failed": 0},
        "exit_code": 3,
        "resume": f"medplat convert {source} {out}",
    }
    # Every file exactly once.
    there = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    listed = [row["path"] for row in rows(out)]
    assert listed == sorted(there)
    assert Counter(row["status"] for row in rows(out)) == {"used": 20, "skipped": 3, "rejected": 5}
    # A line a series, its number of rows, its outputs.
    of_series = Counter(row["series_uid"] for row in rows(out))
    for line in lines(out):
        assert line["n_files"] == of_series[line["series_uid"]]
        assert bool(line["outputs"]) == (line["status"] == "converted")
        for output in line["outputs"]:
            image = nib.load(out / output["path"])
            assert list(image.shape) == output["shape"]
            assert nifti.sidecar_path(out / output["path"]).is_file()
    written = {line["outputs"][0]["path"] for line in lines(out) if line["outputs"]}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.nii*")} == written
    assert "report.html" in {path.name for path in out.iterdir()}


def test_voxels_and_world_are_those_of_the_headers(source: Path, project: Path) -> None:
    out, _ = run(source, project)
    by_uid = {line["series_uid"]: line for line in lines(out)}
    ct = by_uid[export.uid(2, 1)]["outputs"][0]
    volume = nifti.read(out / ct["path"])
    truth = export.expected(list((source / "B").glob("IM1*")))
    np.testing.assert_array_equal(volume.array, truth)
    assert volume.array.dtype == np.uint16
    assert (volume.slope, volume.intercept) == (2.0, -1024.0)
    # Row (0, 1, 0) steps along columns by PixelSpacing[0] = 1.5; LPS -> RAS turns x and y.
    affine = [[-0.75, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2, 5], [0, 0, 0, 1]]
    np.testing.assert_allclose(nib.load(out / ct["path"]).affine, affine, atol=1e-6)
    dynamic = by_uid[export.uid(1, 2)]["outputs"][0]
    assert dynamic["shape"] == [8, 6, 4, 3]
    assert dynamic["phase_times_s"] == [0.0, 20.0, 40.0]
    first = pydicom.dcmread(source / "A" / "s2" / "dyn006.dcm")
    np.testing.assert_array_equal(
        nifti.read(out / dynamic["path"]).array[:, :, 1, 1], first.pixel_array.T
    )
    # Every used row names the place of its file in the output.
    for row in rows(out):
        if row["status"] == "used":
            pixels = pydicom.dcmread(source / row["path"]).pixel_array.T
            array = nifti.read(out / row["output"]).array
            plane = array[:, :, int(row["slice"])]
            if array.ndim == 4:
                plane = plane[..., int(row["phase"])]
            np.testing.assert_array_equal(plane, pixels)


def test_names_order_folders_and_workers_change_no_byte(
    source: Path, project: Path, tmp_path: Path
) -> None:
    first, _ = run(source, project, workers=1)
    other = tmp_path / "shuffled"
    rng = random.Random(1)
    paths = [path for path in source.rglob("*") if path.is_file()]
    rng.shuffle(paths)
    names = list(range(len(paths)))
    rng.shuffle(names)
    for number, path in zip(names, paths, strict=True):
        target = other / f"d{number % 3}" / f"f{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    second, _ = run(other, project, "again", workers=4)
    assert images(first) == images(second)
    key = ("status", "series_uid", "output", "phase", "slice", "reason")
    tables = [sorted(tuple(row[k] for k in key) for row in rows(one)) for one in (first, second)]
    assert tables[0] == tables[1]


def test_a_second_run_leaves_what_is_unchanged(source: Path, project: Path) -> None:
    out, first = run(source, project)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")}
    table, count = rows(out), len(lines(out))
    out, second = run(source, project)
    assert second == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")} == before
    assert (rows(out), len(lines(out))) == (table, count)


def test_damaged_outputs_new_options_and_new_files_are_done_again(
    source: Path, project: Path
) -> None:
    out, _ = run(source, project)
    good = images(out)
    victim = sorted(out.rglob("*.nii.gz"))[0]
    victim.write_bytes(b"damaged")
    gone = sorted(out.glob("case-*/*.json"))[-1]
    gone.unlink()
    count = len(lines(out))
    run(source, project)
    assert images(out) == good
    assert len(lines(out)) - count in (1, 2)
    # The missing slice arrives: the refused series becomes a volume.
    ds = export.image(1, 3, 6, (-10, -20, 6))
    export.save(ds, source / "late" / "x")
    _, outcome = run(source, project)
    assert outcome.exit_code == 0
    assert outcome.summary["counts"]["converted"] == 4
    # Phases apart: the 4-D file of before goes.
    out, _ = run(source, project, split_phases=True)
    phases = [line for line in lines(out) if line["series_uid"] == export.uid(1, 2)][-1]["outputs"]
    assert [one["shape"] for one in phases] == [[8, 6, 4]] * 3
    assert [one["phase_times_s"] for one in phases] == [[0.0], [20.0], [40.0]]
    stem = phases[0]["path"].split("/")[-1].split("_")[0]
    assert not list(out.rglob(f"{stem}.nii.gz"))
    used = [row for row in rows(out) if row["series_uid"] == export.uid(1, 2)]
    assert {(row["output"].rpartition("_")[2], row["phase"]) for row in used} == {
        ("p00.nii.gz", "0"),
        ("p01.nii.gz", "1"),
        ("p02.nii.gz", "2"),
    }


def test_a_series_that_is_rejected_later_leaves_no_volume_behind(
    source: Path, project: Path
) -> None:
    out, _ = run(source, project)
    uid = export.uid(1, 1)
    path = next(line for line in lines(out) if line["series_uid"] == uid)["outputs"][0]["path"]
    assert (out / path).is_file()
    sorted((source / "A" / "s1").iterdir())[2].unlink()
    run(source, project)
    assert not (out / path).exists()
    assert not nifti.sidecar_path(out / path).exists()
    last = [line for line in lines(out) if line["series_uid"] == uid][-1]
    assert (last["status"], last["codes"], last["outputs"]) == ("rejected", ["MISSING_SLICE"], [])


def test_pixels_that_end_too_early_reject_the_series_in_all_accounts(
    source: Path, project: Path
) -> None:
    victim = sorted((source / "B").glob("IM1*"))[1]
    victim.write_bytes(victim.read_bytes()[:-20])
    out, outcome = run(source, project)
    uid = export.uid(2, 1)
    line = next(line for line in lines(out) if line["series_uid"] == uid)
    assert (line["status"], line["codes"]) == ("rejected", ["TRUNCATED"])
    assert {row["status"] for row in rows(out) if row["series_uid"] == uid} == {"rejected"}
    assert outcome.exit_code == 3


def test_a_bug_in_one_series_stops_no_other(
    source: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medplat.dicom import read as dicom_read

    real = dicom_read.read_volume

    def broken(plan: Any, workers: int = 1) -> Any:
        if plan.series.modality == "CT":
            raise ZeroDivisionError("Lastname2 at /secret/path")
        return real(plan, workers)

    monkeypatch.setattr(dicom_read, "read_volume", broken)
    out, outcome = run(source, project)
    line = next(line for line in lines(out) if line["status"] == "failed")
    assert line["codes"] == ["INTERNAL"]
    assert "ZeroDivisionError in test_convert.py" in line["messages"][0]
    assert "Lastname2" not in json.dumps(line)
    assert outcome.summary["counts"]["converted"] == 2
    # Failed series are tried again.
    monkeypatch.setattr(dicom_read, "read_volume", real)
    _, outcome = run(source, project)
    assert outcome.summary["counts"] == {
        "converted": 3, "warned": 0, "skipped": 1, "rejected": 1, "failed": 0
    }  # fmt: skip


def test_a_planner_that_breaks_fails_that_series_alone(
    source: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medplat.dicom import read as dicom_read

    real = dicom_read.plan

    def broken(files: Any, **options: Any) -> Any:
        if files.series_uid == export.uid(1, 1):
            raise ZeroDivisionError
        return real(files, **options)

    monkeypatch.setattr(dicom_read, "plan", broken)
    out, outcome = run(source, project)
    assert outcome.summary["counts"]["failed"] == 1
    assert Counter(row["reason"] for row in rows(out))["INTERNAL"] == 5


def test_shards_share_the_work_and_their_accounts_add_up(source: Path, project: Path) -> None:
    whole, _ = run(source, project, "whole")
    for part in (1, 2, 3):
        out, _ = run(source, project, shard=(part, 3))
    assert images(out) == images(whole)
    assert rows(out) == rows(whole)
    shards = sorted(path.name for path in out.glob("manifest*"))
    assert shards == [*(f"manifest.{part}-of-3.jsonl" for part in (1, 2, 3)), "manifest.jsonl"]
    keyed = {line["stack"]: line["outputs"] for line in lines(whole)}
    assert {line["stack"]: line["outputs"] for line in lines(out)} == keyed
    # What the shards did is done: a run over everything, or a shard again, adds nothing.
    stamp = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert (
        run(source, project)[1].summary["counts"]
        == run(source, project, "whole")[1].summary["counts"]
    )
    run(source, project, shard=(2, 3))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")} == stamp
    text = (out / "report.html").read_text()
    assert "28</b>files found" in text
    assert text.count("<tr data-status=") == 5


@pytest.mark.parametrize(
    ("litter", "code"),
    [({}, 2), ({"a.txt": b"hello"}, 2)],
)
def test_nothing_to_work_on(
    tmp_path: Path, project: Path, litter: dict[str, bytes], code: int
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for name, data in litter.items():
        (folder / name).write_bytes(data)
    with pytest.raises(UsageError, match="no DICOM image") as raised:
        run(folder, project)
    assert raised.value.exit_code == code
    assert [row["path"] for row in rows(project.parent / "out")] == sorted(litter)


def test_only_rejected_is_4_and_only_skipped_is_0(tmp_path: Path, project: Path) -> None:
    export.stack(tmp_path / "bad", 1, 1, (0, 2, 4, 8))
    assert run(tmp_path / "bad", project, "out-bad")[1].exit_code == 4
    export.stack(tmp_path / "scout", 1, 1, (0,), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert run(tmp_path / "scout", project, "out-scout")[1].exit_code == 0


def test_usage_errors(source: Path, project: Path, tmp_path: Path) -> None:
    out = project.parent / "out"
    for options, text in (
        ({"executor": "ray"}, "ray is not built yet"),
        ({"deidentify": tmp_path}, "--deidentify .* overlaps"),
        ({"labels": tmp_path}, "holds SOURCE or OUT"),
        ({"link_table": out / "deep" / "key.csv"}, "must not lie under"),
        ({"dataset": "nothing_like_it"}, "nothing_like_it"),
        ({"dataset": "a", "workflow": tmp_path / "b"}, "not both"),
    ):
        with pytest.raises(UsageError, match=text):
            run(source, project, **options)
    with pytest.raises(UsageError, match="does not exist"):
        run(tmp_path / "nowhere", project)
    with pytest.raises(UsageError, match="lies inside"):
        convert.run(source, source / "out", project=project)
    assert not out.exists()


def test_another_projects_salt_is_refused(source: Path, project: Path, tmp_path: Path) -> None:
    run(source, project)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UsageError, match="another project's salt"):
        convert.run(source, project.parent / "out", project=other)


def test_dry_run_writes_nothing(
    source: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, outcome = run(source, project, dry_run=True)
    assert not out.exists()
    assert outcome.exit_code == 3
    assert outcome.summary["counts"]["converted"] == 3
    assert "MISSING_SLICE" in capsys.readouterr().err


def test_settings_and_no_gzip(source: Path, project: Path) -> None:
    out, outcome = run(
        source, project, settings=("convert.split_phases=true",), no_gzip=True, gzip_level=None
    )
    assert "--set convert.split_phases=true" in outcome.summary["resume"]
    assert len(list(out.rglob("*_p0?.nii"))) == 3
    assert not list(out.rglob("*.gz"))


def test_two_runs_at_once_are_refused(source: Path, project: Path) -> None:
    from filelock import FileLock

    out, _ = run(source, project)
    with FileLock(out / ".manifest.jsonl.lock"), pytest.raises(UsageError, match="another run"):
        run(source, project)
