"""A batch in this process: choice, masks on the source's grid, codes, what is left unchanged."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from medplat import loaders, manifest, nifti, pseudonym, registry, transforms
from medplat.commands import convert, infer, infer_overlay
from medplat.dicom import read as dicom_read
from medplat.dicom import seg
from medplat.errors import UsageError
from medplat.infer import batch, case, sources, table
from medplat.infer.jobs import ModelName
from medplat.infer.worker import Setup
from medplat.report import infer as report
from medplat.track import model_folder
from medplat.types import Geometry, Volume

Make = Callable[..., Path]


class Inline:
    """`Crew` without a process of its own."""

    def __init__(self, setup: Setup, timeout: float, on_end: Any, on_ready: Any) -> None:
        self.setup, self.on_end = setup, on_end
        self.model: case.Model | None = None

    def submit(self, job: Any) -> None:
        if self.model is None:
            loaded = model_folder.read(self.setup.folder)
            compose = transforms.compose(loaded.workflow.transforms, allow_missing_keys=True)
            multiple = registry.model(loaded.workflow.model.name).CARD.multiple
            self.model = case.Model(
                loaded,
                compose,
                self.setup.name,
                "cpu",
                multiple,
                self.setup.seg,
                infer_overlay.draw,
            )
        read = case.read(job, self.setup.inputs)
        self.on_end(job, case.run(job, read, self.model))

    def finish(self) -> None: ...
    def stop(self) -> None: ...


class Runner:
    """Runs a model folder over a source, as the verb does."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.folder, self.project = folder, project
        self.out = project / "out"
        self.flow = model_folder.read(folder).workflow
        self.record = manifest.Manifest(self.out / "manifest.jsonl", manifest.CASE_KEY)

    def __call__(self, source: Path, **options: Any) -> dict[str, Any]:
        """The manifest's last lines, by case."""
        sha = model_folder.read_card(self.folder)["weights_sha256"]
        setup = Setup(
            folder=self.folder,
            name=ModelName("trouble", "1", sha),
            inputs=self.flow.inputs,
            seg=options.get("seg", "labelmap"),
            dicom=True,
            workers=1,
            load=model_folder.read,
            overlay=infer_overlay.draw,
        )
        work = batch.Batch(setup, self.out, self.record, "w", options.get("timeout", 60.0))
        found = sources.find(source, self.flow.inputs, pseudonym.load(self.project))
        self.redone = batch.run(work, found.studies, lambda probe: None)
        return {line["case"]: line for line in self.record.lines().values()}

    def only(self, source: Path, **options: Any) -> dict[str, Any]:
        (line,) = self(source, **options).values()
        return dict(line)


@pytest.fixture
def runner(
    make_model: Make, project: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Runner]:
    monkeypatch.setattr(batch, "Crew", Inline)
    return lambda **options: Runner(make_model(**options), project)


def truth(paths: list[Path]) -> Any:
    """Bright voxels, straight from the files, in the order of their z."""
    ordered = sorted((dcmread(path) for path in paths), key=lambda one: one.ImagePositionPatient[2])
    return np.stack([one.pixel_array.T for one in ordered], -1) > 500


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_dicom_case(runner: Any, write_study: Any, tmp_path: Path, kind: seg.Kind) -> None:
    run = runner()
    paths = write_study(tmp_path / "export", 1)
    line = run.only(tmp_path / "export", seg=kind)
    assert line["status"] == "done"
    folder = run.out / line["case"]
    found = nifti.read(folder / "seg.nii.gz")
    voxels = truth(paths)
    assert np.array_equal(found.array == 3, voxels)
    assert set(np.unique(found.array)) == {0, 3}
    first = min((dcmread(path) for path in paths), key=lambda one: one.ImagePositionPatient[2])
    lps = [float(one) for one in first.ImagePositionPatient]
    assert np.allclose(found.geometry.affine[:3, 3], [-lps[0], -lps[1], lps[2]])
    back = seg.read(folder / "seg.dcm")
    number = 3 if kind == "labelmap" else 1
    assert np.array_equal(seg.onto(back, found.geometry) == number, voxels)
    assert back.segments[0].code is not None
    assert back.segments[0].code.value == "52988006"
    assert back.referenced_series_uid == first.SeriesInstanceUID
    volume_ml = voxels.sum() * 1.2 * 0.9 * 3.0 / 1000
    assert line["numbers"]["lesion_ml"] == pytest.approx(volume_ml, abs=1e-6)
    result = json.loads((folder / "result.json").read_text())
    assert result["labels"] == [
        {"name": "lesion", "value": 3, "n_voxels": int(voxels.sum()),
         "volume_ml": pytest.approx(volume_ml, abs=1e-6)}
    ]  # fmt: skip
    assert len(line["outputs"]) == 4
    assert {"read", "prepare", "predict", "write"} == set(line["seconds"])
    picture = np.asarray(Image.open(folder / "overlay.png")).astype(int)
    assert (picture.max(2) - picture.min(2) > 60).any()  # a coloured contour on grey


def test_other_spacing_comes_back_to_the_sources_grid(
    runner: Any, write_study: Any, tmp_path: Path
) -> None:
    steps = (
        "transforms: [{Spacingd: {keys: [image], pixdim: [0.6, 0.6, 1.5]}}, "
        "{Flipd: {keys: [image], spatial_axis: 0}}]"
    )
    run = runner(transforms=steps)
    paths = write_study(tmp_path / "export", 2)
    line = run.only(tmp_path / "export")
    found = nifti.read(run.out / line["case"] / "seg.nii.gz").array == 3
    voxels = truth(paths)
    assert found.shape == voxels.shape
    overlap = 2 * (found & voxels).sum() / (found.sum() + voxels.sum())
    assert overlap > 0.9
    far = np.abs(np.argwhere(found).mean(0) - np.argwhere(voxels).mean(0)).max()
    assert far < 0.25


def test_second_run_leaves_everything_and_a_lost_file_is_redone(
    runner: Any, write_study: Any, tmp_path: Path
) -> None:
    run = runner()
    for study in (1, 2):
        write_study(tmp_path / "export", study)
    before = run(tmp_path / "export")
    kept = {path: path.read_bytes() for path in run.out.rglob("*.*") if path.parent != run.out}
    again = run(tmp_path / "export")
    assert run.redone == []
    assert {line["status"] for line in again.values()} == {"unchanged"}
    lost, left = sorted(before)
    (run.out / lost / "seg.nii.gz").unlink()
    third = run(tmp_path / "export")
    assert (third[lost]["status"], third[left]["status"]) == ("done", "unchanged")
    assert {path: path.read_bytes() for path in kept} == kept
    run(tmp_path / "export", seg="binary")
    assert sorted(run.redone) == [lost, left]


def test_changed_bytes_are_redone_and_old_results_go_away(
    runner: Any, write_study: Any, tmp_path: Path
) -> None:
    run = runner()
    write_study(tmp_path / "export", 1)
    line = run.only(tmp_path / "export")
    write_study(tmp_path / "export", 1, mark=9001)
    line = run.only(tmp_path / "export")
    assert line["error"] == {
        "code": "MODEL_FAILED",
        "message": "the model raised ValueError (a voxel of 9001)",
    }
    assert [path.name for path in (run.out / line["case"]).iterdir()] == ["result.json"]
    run(tmp_path / "export")
    assert run.redone == []  # a failure of the case itself is not tried again


def test_broken_studies_are_refused_one_by_one(
    runner: Any, write_study: Any, tmp_path: Path
) -> None:
    run = runner()
    export = tmp_path / "export"
    write_study(export, 1)
    write_study(export, 2)[3].unlink()
    cut = write_study(export, 3)[2]
    cut.write_bytes(cut.read_bytes()[:-100])
    for number in (1, 2):
        write_study(export, 4, series=number)
    lines = run(export).values()
    found = sorted((line["status"], (line["error"] or {"code": ""})["code"]) for line in lines)
    assert found == [
        ("done", ""),
        ("rejected", "AMBIGUOUS_INPUT"),
        ("rejected", "MISSING_SLICE"),
        ("rejected", "TRUNCATED"),
    ]
    assert manifest.exit_code(lines) == 3
    gap = next(line for line in lines if "MISSING_SLICE" in str(line["not_taken"]))
    assert gap["error"]["message"].startswith("no series of the study can be used: series 1 'T1': ")
    count = len((run.out / "manifest.jsonl").read_text().splitlines())
    run(export)
    assert run.redone == []
    assert len((run.out / "manifest.jsonl").read_text().splitlines()) == count + 1


def test_a_study_of_localizers_is_skipped_and_not_held_against_the_run(
    make_model: Make,
    write_study: Any,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "Crew", Inline)
    model, export, out = str(make_model()), tmp_path / "export", tmp_path / "out"
    write_study(export, 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for _ in range(2):
        with pytest.raises(UsageError, match="nothing to work on"):
            infer.run(model, export, out, project=project)
    (line,) = (json.loads(text) for text in (out / "manifest.jsonl").read_text().splitlines())
    assert (line["status"], line["error"]["code"]) == ("skipped", "NO_INPUT")
    assert "ImageType says localizer" in line["error"]["message"]
    assert "LOCALIZER" in next(iter(line["not_taken"].values()))
    assert infer.run(model, export, out, project=project, shard=(1, 1)).exit_code == 0

    write_study(export, 2)
    outcome = infer.run(model, export, out, project=project)
    assert outcome.exit_code == 0
    assert outcome.summary["counts"] == {
        "done": 1, "unchanged": 0, "skipped": 1, "rejected": 0, "failed": 0,
    }  # fmt: skip
    (row,) = (
        row
        for row in csv.DictReader((out / "results.csv").read_text().splitlines())
        if row["status"] == "skipped"
    )
    assert (row["code"], row["lesion_ml"]) == ("NO_INPUT", "")
    assert 'data-status="skipped"' in (out / "report.html").read_text()

    write_study(export, 3)[2].unlink()
    assert infer.run(model, export, out, project=project).exit_code == 3


def test_words_in_place_of_dates_do_not_cost_the_result(
    runner: Any, write_study: Any, tmp_path: Path
) -> None:
    run, export = runner(), tmp_path / "export"
    for path in write_study(export, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = dcmread(path)
            image.StudyDate = image.ContentDate = image.PatientBirthDate = "REMOVED"
            image.StudyTime, image.PatientSex = "NONE", "UNKNOWN"
            image.save_as(path)
    line = run.only(export)
    assert (line["status"], line["notes"]) == ("done", [])
    written = dcmread(run.out / line["case"] / "seg.dcm")
    assert not written.PatientBirthDate
    assert not written.PatientSex


def test_a_series_that_breaks_the_planner_fails_alone(
    runner: Any, write_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dicom_read.plan

    def plan(group: Any, **options: Any) -> Any:
        if len(group.headers) == 7:
            raise IndexError("Secret")
        return real(group, **options)

    monkeypatch.setattr(dicom_read, "plan", plan)
    write_study(tmp_path / "export", 1)
    write_study(tmp_path / "export", 2, shape=(18, 14, 7))
    lines = runner()(tmp_path / "export").values()
    assert sorted(line["status"] for line in lines) == ["done", "rejected"]
    assert "Secret" not in json.dumps(list(lines))


def test_results_and_conversions_are_not_mixed(
    runner: Any, write_study: Any, tmp_path: Path, project: Path
) -> None:
    run = runner()
    write_study(tmp_path / "export", 1)
    run(tmp_path / "export")
    with pytest.raises(UsageError, match="holds results of infer"):
        convert.run(tmp_path / "export", run.out, project=project)


def test_no_path_stands_in_a_refusal(runner: Any, tmp_path: Path) -> None:
    folder = tmp_path / "SecretPlace"
    folder.mkdir()
    (folder / "one.nii.gz").write_bytes(b"junk")
    line = runner().only(folder)
    assert (line["status"], line["error"]["code"]) == ("rejected", "TRUNCATED")
    assert "SecretPlace" not in json.dumps(line)


def test_source_without_uids_gets_no_dicom_object(
    runner: Any, write_study: Any, tmp_path: Path
) -> None:
    run = runner()
    for path in write_study(tmp_path / "export", 1):
        dataset = dcmread(path)
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = ""
        dataset.save_as(path)
    line = run.only(tmp_path / "export")
    assert line["status"] == "done"
    assert line["notes"] == ["seg.dcm is not written: study or series UID of the source is empty"]
    names = {path.name for path in (run.out / line["case"]).iterdir()}
    assert names == {"seg.nii.gz", "result.json", "overlay.png"}


def test_nothing_found_is_written_and_said(runner: Any, tmp_path: Path, write_study: Any) -> None:
    run = runner()
    for path in write_study(tmp_path / "export", 1):
        dataset = dcmread(path)
        dataset.PixelData = bytes(len(dataset.PixelData))
        dataset.save_as(path)
    line = run.only(tmp_path / "export")
    folder = run.out / line["case"]
    assert line["notes"] == ["nothing was found: the mask is empty"]
    assert json.loads((folder / "result.json").read_text())["labels"][0]["n_voxels"] == 0
    assert not seg.read(folder / "seg.dcm").array.any()
    assert line["numbers"] == {"lesion_ml": 0.0}


def test_selection_study(runner: Any, tmp_path: Path) -> None:
    write_selection_study = registry.dataset("phantom").write_selection_study
    rule = (
        "inputs: [{name: t1, description: ['t1*'], orientation: axial, contrast: false, "
        "slice_thickness_mm: [1, 5], original: true}]"
    )
    run = runner(inputs=rule)
    uids = write_selection_study(tmp_path / "export")
    line = run.only(tmp_path / "export")
    assert line["status"] == "done"
    assert line["series"]["t1"]["series_uid"] == uids["t1"]
    why = line["not_taken"]
    assert "LOCALIZER" in why[uids["localizer"]]
    assert "a contrast agent is named" in why[uids["t1_contrast"]]
    assert "it is a derived image" in why[uids["reformat"]]
    assert "slice thickness 8 mm" in why[uids["t1_thick"]]
    assert set(why) == set(uids.values()) - {uids["t1"]}
    write_selection_study(tmp_path / "two", second=True)
    line = run(tmp_path / "two")[line["case"]]
    assert (line["status"], line["error"]["code"]) == ("rejected", "AMBIGUOUS_INPUT")
    assert "fits t1, as another does" in line["not_taken"][uids["t1"]]
    assert [path.name for path in (run.out / line["case"]).iterdir()] == ["result.json"]


def box(shape: tuple[int, int, int], phases: int = 1) -> Volume:
    array = np.zeros((*shape, phases), np.int16)
    array[2:5, 1:4, 1:3, -1] = 900
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    return Volume(array if phases > 1 else array[..., 0], Geometry(affine, shape))


def test_nifti_files(runner: Any, tmp_path: Path) -> None:
    run = runner()
    nifti.write(box((9, 8, 7)), tmp_path / "in" / "one.nii.gz")
    nifti.write(box((8, 9, 6)), tmp_path / "in" / "deep er" / "two.nii")
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"not gzip")
    lines = run(tmp_path / "in")
    assert set(lines) == {"one", "deep_er_two", "broken"}
    assert lines["broken"]["error"]["code"] == "TRUNCATED"
    assert lines["one"]["numbers"] == {"lesion_ml": pytest.approx(18 * 0.008)}
    assert {path.name for path in (run.out / "one").iterdir()} == {
        "seg.nii.gz", "result.json", "overlay.png",
    }  # fmt: skip


def test_a_turn_to_the_patients_axes_needs_directions(runner: Any, tmp_path: Path) -> None:
    """As published copies without orientation have none: nothing is turned by a guess."""
    run = runner(transforms="transforms: [{Orientationd: {keys: [image, label], axcodes: RAS}}]")
    known = box((9, 8, 7))
    nifti.write(known, tmp_path / "in" / "known.nii.gz")
    nifti.write(known, tmp_path / "in" / "bare.nii.gz")
    nifti.write_json(tmp_path / "in" / "bare.json", {"geometry": {"orientation": "unknown"}})
    lines = run(tmp_path / "in")
    assert lines["known"]["status"] == "done"
    assert (lines["bare"]["status"], lines["bare"]["error"]["code"]) == ("rejected", "NO_GEOMETRY")


def test_nifti_phases_and_several_inputs(runner: Any, tmp_path: Path) -> None:
    run = runner(inputs="inputs: [{name: late, phase: 2}, {name: pre, phase: 0}]")
    nifti.write(box((9, 8, 7), phases=3), tmp_path / "in" / "dce.nii.gz")
    line = run.only(tmp_path / "in")
    assert line["numbers"] == {"lesion_ml": pytest.approx(18 * 0.008)}


def test_file_names_of_several_inputs(runner: Any, tmp_path: Path) -> None:
    run = runner(inputs="inputs: [{name: t1}, {name: t2}]")
    source = tmp_path / "in"
    for name in ("a_t1", "a_t2", "b/t1", "b/t2", "c_0000", "c_0001", "d_t1"):
        nifti.write(box((9, 8, 7)), source / f"{name}.nii.gz")
    lines = run(source)
    assert {name: line["status"] for name, line in lines.items()} == {
        "a": "done", "b": "done", "c": "done", "d": "rejected",
    }  # fmt: skip
    assert lines["d"]["error"]["code"] == "MISSING_INPUT"
    assert "no file for input t2" in lines["d"]["error"]["message"]


def test_pictures(runner: Any, tmp_path: Path) -> None:
    run = runner(dims=2)
    source = tmp_path / "in"
    source.mkdir()
    pixels = np.zeros((20, 30), np.uint16)
    pixels[3:7, 10:18] = 900
    Image.fromarray(pixels).save(source / "x ray.png")
    line = run.only(source)
    assert line["status"] == "done"
    assert line["numbers"] == {"lesion_ml": None}
    mask = np.asarray(Image.open(run.out / "x_ray" / "seg.png"))
    assert np.array_equal(mask == 3, pixels > 500)
    assert not (run.out / "x_ray" / "seg.nii.gz").exists()


def test_table_and_report(runner: Any, write_study: Any, tmp_path: Path) -> None:
    run = runner()
    write_study(tmp_path / "export", 1, SeriesDescription="<script>alert(1)</script>")
    write_study(tmp_path / "export", 2, mark=9001)
    run(tmp_path / "export")
    lines = manifest.read_all(run.out, manifest.CASE_KEY)
    table.write(run.out / "results.csv", lines, run.flow)
    rows = list(csv.DictReader((run.out / "results.csv").read_text().splitlines()))
    assert list(rows[0]) == ["case", "patient", "status", "code", "model", "version", "lesion_ml"]
    assert sorted((row["status"], row["code"]) for row in rows) == [
        ("done", ""),
        ("failed", "MODEL_FAILED"),
    ]
    page = report.write(run.out, lines, table.columns(run.flow)).read_text()
    assert page.index("MODEL_FAILED") < page.index("data:image")
    assert "<script>alert" not in page
    assert "Secret" not in page
    for path in run.out.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            assert b"Secret" not in path.read_bytes()


def test_converted_folder_is_a_source(runner: Any, tmp_path: Path) -> None:
    from medplat.commands import convert

    rule = "inputs: [{name: t1, description: ['t1*'], contrast: true}]"
    run = runner(inputs=rule)
    uids = registry.dataset("phantom").write_selection_study(tmp_path / "export")
    convert.run(tmp_path / "export", tmp_path / "nifti", project=run.project, workers=1)
    line = run.only(tmp_path / "nifti")
    assert line["status"] == "done"
    assert line["series"]["t1"]["series_uid"] == uids["t1_contrast"]
    assert line["case"] == next(path.name for path in (tmp_path / "nifti").glob("case-*"))
    assert not (run.out / line["case"] / "seg.dcm").exists()


def test_a_lost_sidecar_refuses_its_series_alone(runner: Any, tmp_path: Path) -> None:
    from medplat.commands import convert

    run = runner(inputs="inputs: [{name: t1, description: ['t1*'], contrast: true}]")
    registry.dataset("phantom").write_selection_study(tmp_path / "export")
    convert.run(tmp_path / "export", tmp_path / "nifti", project=run.project, workers=1)
    for sidecar in (tmp_path / "nifti").glob("case-*/*.json"):
        sidecar.unlink()
    line = run.only(tmp_path / "nifti")
    assert (line["status"], line["error"]["code"]) == ("rejected", "MISSING_FILE")
    assert "convert the series again" in line["error"]["message"]


def test_nothing_to_work_on(runner: Any, tmp_path: Path) -> None:
    run = runner()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "README.txt").write_text("hello")
    with pytest.raises(UsageError, match="nothing to work on"):
        run(tmp_path / "in")
    assert loaders.is_picture(Path("a.png"))
