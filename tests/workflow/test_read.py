"""Every mistake of a workflow at once, each at its line; nothing converted in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medplat import registry
from medplat.errors import UsageError, WorkflowError
from medplat.workflow import read, schema, write

GOOD = """kind: train
inputs:
  - {name: pre, modality: MR, phase: 0}
dataset:
  name: folder
  root: data
  split: {every: 5}
transforms:
  - Spacingd: {keys: [image, label], pixdim: [1, 1, 1.5], mode: [bilinear, nearest]}
augment:
  - RandFlipd: {keys: [image, label], prob: 0.5, spatial_axis: 0}
task:
  kind: segment
  labels:
    - {name: lesion, value: 1, code: {value: "52988006", meaning: Lesion}}
model:
  name: unet
train:
  epochs: 3
  learning_rate: 1e-3
  patch_size: [16, 16, 16]
track: {register: small}
"""


def problems(text: str, settings: tuple[str, ...] = (), **options: object) -> list[str]:
    with pytest.raises(WorkflowError) as caught:
        read.read_text(text, "w.yaml", settings, **options)  # type: ignore[arg-type]
    return caught.value.problems


def test_a_good_workflow_becomes_its_model() -> None:
    workflow = read.read_text(GOOD, "w.yaml", ["train.seed=7", "inputs.0.phase=2"])
    assert isinstance(workflow, schema.TrainWorkflow)
    assert workflow.train.learning_rate == 0.001
    assert workflow.train.patch_size == (16, 16, 16)
    assert workflow.train.seed == 7
    assert workflow.inputs[0].phase == 2
    assert workflow.dataset.split.every == 5
    assert workflow.dataset.options == {"root": "data"}


def test_all_mistakes_at_once_with_place_and_suggestion() -> None:
    text = (
        GOOD.replace("epochs", "epoch")
        .replace("pixdim", "pixdum")
        .replace("modality: MR", "modalty: MR")
        .replace('"52988006"', "00123")
    )
    found = problems(text, ("train.max_epoch=7", "train.seed=abc", "nonsense"))
    assert found == [
        "w.yaml:3:17: inputs.0.modalty: unknown key. Did you mean 'modality'?",
        "w.yaml:9:38: transforms.0.Spacingd.pixdum: unknown argument. Did you mean 'pixdim'?",
        "w.yaml:15:46: task.labels.0.code.value: must be text, is 123. Write '00123' in quotes",
        "w.yaml:19:3: train.epoch: unknown key. Did you mean 'epochs'?",
        "--set #1: train.max_epoch: unknown key. Did you mean 'epochs'?",
        "--set #2: train.seed: must be a whole number, is 'abc'",
        "--set #3: 'nonsense' is not key.path=value",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("epochs: 3", "epochs: 3.0", "w.yaml:19:11: train.epochs: must be a whole number, is 3.0"),
        ("epochs: 3", "epochs: '3'", "w.yaml:19:11: train.epochs: must be a whole number, is '3'"),
        ("epochs: 3", "epochs: true", "w.yaml:19:11: train.epochs: must be a whole number, is"
         " true"),
        ("epochs: 3", "epochs: 0", "w.yaml:19:11: train.epochs: must be greater than 0, is 0"),
        ("epochs: 3", "cache: no", "w.yaml:19:10: train.cache: must be true or false, is 'no'"),
        ("epochs: 3", "clip: '1'", "w.yaml:19:9: train.clip: must be a number, is '1'"),
        (
            "epochs: 3",
            "precision: 32",
            "w.yaml:19:14: train.precision: must be one of auto, 32, bf16, 16."
            " Write '32' in quotes",
        ),
        (
            "epochs: 3",
            "optimizer: sdg",
            "w.yaml:19:14: train.optimizer: must be one of adamw, adam, sgd, is 'sdg'."
            " Did you mean 'sgd'?",
        ),
        ("name: pre", "name: 00123", "w.yaml:3:12: inputs.0.name: must be text, is 123."
         " Write '00123' in quotes"),
        ("name: pre", "name: 'a b'", "w.yaml:3:12: inputs.0.name: 'a b' may not hold blanks or"
         " special characters"),
        ("phase: 0", "phase: 0, phase_time_s: 60", "w.yaml:3:5: inputs.0: give phase or"
         " phase_time_s, not both"),
        ("  kind: segment", "  kind: segmnt", "w.yaml:13:9: task.kind: must be one of"
         " segment, classify, restore, is 'segmnt'. Did you mean 'segment'?"),
        ("  kind: segment\n", "", "w.yaml:12:1: task: kind is missing"),
        ("kind: train", "kind: trian", "w.yaml:1:7: kind: must be one of convert, train, evaluate."
         " Did you mean 'train'?"),
        ("kind: train\n", "", "w.yaml:1:1: kind: is missing; one of convert, train, evaluate"),
        ("  name: unet\n", "  depth: 3\n", "w.yaml:16:1: model.name: is missing"),
        ("[16, 16, 16]", "[16, 16]", "w.yaml:1:1: train.patch_size has 2 numbers,"
         " task.spatial_dims is 3"),
        ("{every: 5}", "{evry: 5}", "w.yaml:7:11: dataset.split.evry: unknown key."
         " Did you mean 'every'?"),
        ("register: small", "registr: small", "w.yaml:22:9: track.registr: unknown key."
         " Did you mean 'register'?"),
        ("- RandFlipd: {keys", "- RandFlip: {keys", "w.yaml:11:5: augment.0.RandFlip: unknown"
         " transform. Did you mean 'RandFlipd'?"),
        ("keys: [image, label], prob", "keys: [image, labl], prob", "w.yaml:11:23:"
         " augment.0.RandFlipd.keys: 'labl' is not in a case; known are image, label."
         " Did you mean 'label'?"),
        ("- Spacingd: {", "- RandZoomd: {keys: image}\n  - Spacingd: {", "w.yaml:9:5:"
         " transforms.0.RandZoomd: is random: it belongs under augment"),
        ("- Spacingd: {keys: [image, label], pixdim: [1, 1, 1.5], mode: [bilinear, nearest]}",
         "- Orientationd", "w.yaml:9:5: transforms.0: must be a mapping of keys to values, is"
         " 'Orientationd'"),
        ("epochs: 3", "epochs: 3\n  epochs: 4", "w.yaml:20:3: train.epochs: given twice, first at"
         " w.yaml:19:3: remove one"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert problems(GOOD.replace(old, new, 1)) == [expected]


def test_a_list_of_wrong_entries_is_not_also_called_too_short() -> None:
    text = GOOD.replace("value: 1, code", "value: 1, colour: red, code")
    assert [re.sub(r".*: ", "", one) for one in problems(text)] == ["unknown key"]
    line = '    - {name: lesion, value: 1, code: {value: "52988006", meaning: Lesion}}\n'
    empty = GOOD.replace(line, "    []\n")
    assert problems(empty)[0].endswith("task.labels: must hold at least 1 entries")


@pytest.mark.parametrize("text", ["", "- a\n", "just words", "null"])
def test_what_is_no_mapping_is_no_workflow(text: str) -> None:
    assert problems(text) == ["w.yaml:1:1: a workflow is a mapping that begins with kind:"]


def test_the_verb_needs_its_kind() -> None:
    assert (
        problems(GOOD, kind="evaluate")[0] == "w.yaml:1:7: kind: is train, this verb needs evaluate"
    )
    assert read.read_text(GOOD, "w.yaml", kind="train").kind == "train"


def test_at_most_twenty_are_printed() -> None:
    text = GOOD + "".join(f"key{n}: 1\n" for n in range(30))
    with pytest.raises(WorkflowError) as caught:
        read.read_text(text, "w.yaml")
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("... and 10 more")


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="medplat list workflows"):
        read.read(tmp_path / "absent.yaml")
    if registry.workflows():
        name = next(iter(registry.workflows()))
        with pytest.raises(UsageError, match=f"medplat copy {name}"):
            read.read(tmp_path / f"{name.rpartition('/')[2]}.yaml")


def test_unknown_plugins_are_named_together(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(GOOD.replace("name: unet", "name: unt").replace("name: folder", "name: fodler"))
    with pytest.raises(WorkflowError) as caught:
        read.read(path)
    first, second = caught.value.problems
    assert first.startswith(f"{path}:5:9: dataset.name: unknown dataset 'fodler'; known are ")
    assert second.startswith(f"{path}:17:9: model.name: unknown model 'unt'; known are ")
    assert second.endswith(". Did you mean 'unet'?")
    assert ".." not in first + second


def test_a_plugins_own_keys_are_checked_at_their_lines_and_its_defaults_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "w.yaml"
    wrong = GOOD.replace("name: unet", "name: unet\n  chanels: [8]\n  dropout: a")
    path.write_text(wrong.replace("name: folder", "name: phantom"))
    with pytest.raises(WorkflowError) as caught:
        read.read(path)
    assert f"{path}:18:3: model.chanels: unknown key. Did you mean 'channels'?" in str(caught.value)
    assert f"{path}:19:12: model.dropout: must be a number, is 'a'" in str(caught.value)

    path.write_text(GOOD.replace("name: folder", "name: phantom"))
    workflow = read.read(path)
    assert isinstance(workflow, schema.TrainWorkflow)
    module = registry.model("unet")
    assert set(workflow.model.options) == set(module.Config.model_fields)
    assert read.model_config(workflow) == module.Config()
    assert str(read.dataset_config(workflow).root) == "data"
    # What is stored with a model is read again, also where the data set's plugin is unknown.
    text = write.dump(workflow)
    assert read.read_text(text, "stored") == workflow
    gone = text.replace("name: phantom", "name: no_such_plugin")
    assert read.read_text(gone, "stored").dataset.name == "no_such_plugin"  # type: ignore[union-attr]


def test_without_plugins_only_their_names_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(GOOD.replace("name: unet", "name: unet\n  chanels: [8]"))
    assert read.read(path, plugins=False).kind == "train"
    with pytest.raises(WorkflowError, match=r"--set #1: dataset.name: unknown dataset 'fodler'"):
        read.read(path, ["dataset.name=fodler"], plugins=False)


def test_a_config_made_later_names_the_wrong_key() -> None:
    workflow = read.read_text(GOOD.replace("name: unet", "name: unet\n  dropout: a"), "w.yaml")
    assert isinstance(workflow, schema.TrainWorkflow)
    with pytest.raises(WorkflowError, match="model: dropout: must be a number, is 'a'"):
        read.model_config(workflow)


def test_a_task_that_the_model_does_not_serve(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    text = GOOD.replace("name: folder", "name: phantom").replace("name: unet", "name: wau_unet")
    multiple = registry.model("wau_unet").CARD.multiple
    path.write_text(text)
    with pytest.raises(WorkflowError) as caught:
        read.read(
            path, ["train.patch_size=[17, 17, 17]", "task.kind=classify", "task.classes=[a, b]"]
        )
    assert "task.labels: unknown key" in str(caught.value)
    if multiple > 1:
        with pytest.raises(WorkflowError) as caught:
            read.read(path, ["train.patch_size=[17, 17, 17]"])
        assert caught.value.problems == [
            f"--set #1: train.patch_size: wau_unet needs multiples of {multiple}"
        ]


RESTORE = """kind: train
dataset: {name: folder, root: data}
transforms:
  - Spacingd: {keys: image, pixdim: [1, 1, 1]}
augment:
  - RandFlipd: {keys: [image, reference], prob: 0.5}
task:
  kind: restore
  degrade:
    - {kind: rician, noise_percent: 5}
    - {kind: kspace, acceleration: 3}
model: {name: unet}
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Spacingd: {keys: image, pixdim: [1, 1, 1]}", "ScaleIntensityd: {keys: image}",
         "w.yaml:4:5: transforms.0.ScaleIntensityd: changes values: restore scales by task.range"
         " and back; leave it out"),
        ("{keys: image, pixdim", "{keys: reference, pixdim", "w.yaml:4:22: transforms.0.Spacingd"
         ".keys: 'reference' is not in a case; known are image"),
        ("noise_percent: 5", "noise_percent: 0", "w.yaml:10:37: task.degrade.0.noise_percent:"
         " must be greater than 0, is 0"),
        ("kind: kspace", "kind: kspase", "w.yaml:11:14: task.degrade.1.kind: must be one of rician,"
         " kspace, sinogram, blur, is 'kspase'. Did you mean 'kspace'?"),
    ],
)  # fmt: skip
def test_one_mistake_of_a_restore_workflow(old: str, new: str, expected: str) -> None:
    assert read.read_text(RESTORE, "w.yaml").kind == "train"
    assert old in RESTORE
    assert problems(RESTORE.replace(old, new, 1)) == [expected]
