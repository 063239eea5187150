"""Conversion of large exports: a quick start, flat memory, and runs that go on where one ended."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import convert_export as export

from medplat import pseudonym
from medplat.commands import convert
from medplat.commands.convert_series import Options
from medplat.dicom import index, scan
from medplat.infer import sources
from medplat.workflow.schema import ConvertWorkflow, Input


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return export.export(tmp_path / "source")


def test_a_plain_conversion_starts_without_what_it_does_not_need(
    source: Path, project: Path
) -> None:
    words = ["medplat", "convert", str(source), str(project / "out"), "--project", str(project)]
    code = (
        "import sys\n"
        f"sys.argv = {words!r}\n"
        "from medplat import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert end.code == 3, end.code\n"
        "heavy = ('pydicom', 'nibabel', 'pydantic', 'SimpleITK', 'highdicom', 'torch', 'scipy')\n"
        "bad = [name for name in heavy if name in sys.modules]\n"
        "assert not bad, bad\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_defaults_are_those_of_the_schema() -> None:
    flow = ConvertWorkflow(kind="convert")
    assert Options() == Options(
        split_phases=flow.convert.split_phases,
        gzip_level=flow.convert.gzip_level,
        transforms=flow.transforms,
    )


def test_a_second_run_parses_nothing_and_keeps_every_byte(
    source: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = project.parent / "out"
    first = convert.run(source, out, project=project)
    before = {path: path.read_bytes() for path in out.glob("case-*/*")}
    accounts = (out / "files.csv").read_bytes()
    monkeypatch.setattr(scan, "read_header", lambda *_: pytest.fail("a header was parsed"))
    for path in out.glob("case-*/*.nii.gz"):
        path.unlink()
    again = convert.run(source, out, project=project)
    assert again == first
    assert {path: path.read_bytes() for path in out.glob("case-*/*")} == before
    assert (out / "files.csv").read_bytes() == accounts


@pytest.mark.parametrize("more", [{"keep": ("patient-id",)}, {"link_table": Path("key.csv")}])
def test_no_index_where_identities_are_asked_for(
    source: Path, project: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    if "link_table" in more:
        more = {"link_table": tmp_path / "keys" / "key.csv"}
    out = project.parent / "out"
    convert.run(source, out, project=project, **more)
    assert not (out / index.NAME).exists()


def test_dry_run_ends_with_the_code_of_the_run(tmp_path: Path, project: Path) -> None:
    whole = tmp_path / "source"
    export.stack(whole, 1, 1, (0, 2, 4))
    (other,) = export.stack(tmp_path / "other", 2, 1, (0,), Modality="CT")
    data = other.read_bytes()
    for source in (whole, tmp_path / "only"):
        source.mkdir(exist_ok=True)
        (source / "cut").write_bytes(data[: data.index(b"\x20\x00\x0d\x00UI")])
        out = project.parent / f"out-{source.name}"
        dry = convert.run(source, out, project=project, dry_run=True)
        assert dry.exit_code == convert.run(source, out, project=project).exit_code != 0


def test_phases_in_files_of_their_own_are_one_series_to_infer(
    tmp_path: Path, project: Path
) -> None:
    export.dynamic(tmp_path / "source", 1, 2, phases=3)
    found = {}
    for split in (False, True):
        out = project.parent / f"out{split}"
        convert.run(tmp_path / "source", out, project=project, split_phases=split)
        early = Input(name="early", phase=1)
        (study,) = sources.find(out, [early], pseudonym.load(project)).studies
        (found[split],) = study.series
    assert found[True].phase_times_s == found[False].phase_times_s
    assert found[True].shape == found[False].shape
    from medplat import nifti

    path = found[True].path
    assert path is not None
    image = nifti.image_of(path, 1)
    assert (image.path.name, image.phase) == (path.name.replace("_p00", "_p01"), None)
    whole = nifti.read(found[False].path or Path())
    assert (nifti.read(image.path).array == whole.array[..., 1]).all()


def test_room_lets_no_more_in_than_fits() -> None:
    room = convert.Room(400 << 20)
    held: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def work(size: int) -> None:
        with room.taken(size):
            with lock:
                held.append(size)
                most.append(sum(held))
            time.sleep(0.002)
            with lock:
                held.remove(size)

    sizes = [(size << 20) for size in (400, 90, 10, 300, 200, 400, 50, 700) * 3]
    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == len(sizes)
    assert max(sum_ for sum_ in most if sum_ < 700 << 20) <= 500 << 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no module resource")
def test_ten_thousand_files_in_little_memory(tmp_path: Path, project: Path) -> None:
    """The full size, 100,000 files, is the benchmark `large_export`."""
    source = tmp_path / "source"
    for series in range(1, 11):
        export.stack(source / f"s{series}", 1, series, [2.0 * k for k in range(1000)])
    words = [sys.executable, "-m", "medplat", "convert", str(source), str(tmp_path / "out")]
    words += ["--project", str(project), "--json", "-q"]
    # The kernel counts the memory of the process that starts another as that one's: start it small.
    between = "import subprocess, sys, resource; subprocess.run(sys.argv[1:], check=True); "
    between += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    peaks = []
    for _ in range(2):
        told = subprocess.check_output([sys.executable, "-c", between, *words], text=True)
        counts, peak = told.rstrip().rsplit("\n", 1)
        assert json.loads(counts)["counts"]["converted"] == 10
        peaks.append(int(peak) / 1024)
    # 100,000 files have 1 GB; a tenth of them, and what any conversion needs.
    assert max(peaks) < 100 + 90, peaks
