"""Plugins by name: ours by file, others' by entry point, none imported to be listed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medplat import registry
from medplat.errors import MissingExtra, PluginError, UsageError

CARDLESS = "from pydantic import BaseModel\nclass Config(BaseModel): pass\n"
DATASET = CARDLESS + "def cases(config): return []\n"


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with entry points, found as an installed one would be."""
    folder = tmp_path / "site"
    info = folder / "outsider-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[medplat.datasets]\n"
        "good_rows = outsider_good\nneeds_torch = outsider_torch\nneeds_other = outsider_other\n"
        "broken = outsider_broken\nhollow = outsider_hollow\nphantom = outsider_good\n"
        "taken = outsider_taken\n"
    )
    (folder / "outsider_good.py").write_text(DATASET)
    (folder / "outsider_torch.py").write_text("raise ModuleNotFoundError('no', name='torch.nn')")
    (folder / "outsider_other.py").write_text("import a_package_that_is_not_there")
    (folder / "outsider_broken.py").write_text("raise RuntimeError('secret words')")
    (folder / "outsider_hollow.py").write_text(CARDLESS)
    (folder / "outsider_taken.py").write_text(DATASET.replace(": pass", ":\n    split: int = 1"))
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_ours_are_the_files_and_nothing_is_imported() -> None:
    code = (
        "import sys; from medplat import registry; "
        "print(registry.model_names(), registry.dataset_names()); "
        "bad = [m for m in sys.modules if m.startswith(('medplat.models', 'medplat_datasets', "
        "'torch', 'numpy', 'pydantic'))]; assert not bad, bad"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "'unet'" in shown.stdout
    assert "'wau_unet'" in shown.stdout
    assert "'phantom'" in shown.stdout
    assert "'_" not in shown.stdout


def test_an_outsiders_plugin_is_found_by_entry_point(outsider: Path) -> None:
    assert "good_rows" in registry.dataset_names()
    assert registry.found("dataset")["good_rows"][0].origin == "outsider"
    assert registry.dataset("good_rows").cases(None) == []


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("needs_torch", MissingExtra, r"pip install 'medplat\[ml\]'"),
        ("needs_other", PluginError, "needs a_package_that_is_not_there, which is not installed"),
        ("broken", PluginError, r"of outsider cannot be imported \(RuntimeError\)"),
        ("hollow", PluginError, "lacks cases"),
        ("phantom", PluginError, "two dataset plugins are called 'phantom'"),
        ("taken", PluginError, "its Config may not hold split"),
        ("good_row", PluginError, "Did you mean 'good_rows'"),
    ],
)
def test_what_is_wrong_with_an_outsiders_plugin(
    outsider: Path, name: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        registry.dataset(name)
    assert "secret" not in str(caught.value)


def test_a_clash_is_named_and_lists_go_on(outsider: Path) -> None:
    assert any("'phantom'" in one and "outsider" in one for one in registry.clashes())
    assert "phantom" in registry.dataset_names()


def test_every_plugin_of_ours_keeps_the_contract() -> None:
    for name in registry.model_names():
        assert registry.model(name).CARD.title
    for name in registry.dataset_names():
        assert callable(registry.dataset(name).cases)


def test_workflows_by_verb_and_name_or_by_name() -> None:
    known = registry.workflows()
    for name, path in known.items():
        assert registry.workflow(name) == path
        assert registry.workflow(f"{name}.yaml") == path
        assert path.is_file()
    with pytest.raises(UsageError, match="unknown workflow 'trian/x'"):
        registry.workflow("trian/x")
    twice = [name for name in known if name.partition("/")[2] == "unet_phantom"]
    if len(twice) > 1:
        with pytest.raises(UsageError, match="several workflows are called 'unet_phantom'"):
            registry.workflow("unet_phantom")


def test_titles_are_read_not_run(tmp_path: Path) -> None:
    path = tmp_path / "plugin.py"
    path.write_text('"""One line.\n\nMore."""\nraise SystemExit\n')
    assert registry.title(path) == "One line."
    path.write_text("def (:\n")
    assert registry.title(path) == "(this file does not parse)"
    path = tmp_path / "w.yaml"
    path.write_text("# medplat train w.yaml\nkind: train\n")
    assert registry.title(path) == "medplat train w.yaml"
