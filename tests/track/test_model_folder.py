from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medplat.errors import ModelError
from medplat.track import model_folder
from medplat.types import Task

Make = Callable[..., Any]


def test_a_model_comes_back_bit_by_bit(make_model: Make) -> None:
    made = make_model()
    loaded = model_folder.read(made.folder)
    assert loaded.task == Task("segment", 3, 1, 2)
    assert loaded.name == "wau_unet"
    assert loaded.weights_sha256 == made.sha256
    assert not loaded.network.training
    for name, tensor in made.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor), name
    image = torch.randn(1, 1, 9, 10, 11)
    with torch.no_grad():
        assert torch.equal(loaded.network(image), made.network.eval()(image))


def test_the_folder_holds_three_files_and_no_code(make_model: Make) -> None:
    made = make_model()
    names = sorted(path.name for path in made.folder.iterdir())
    assert names == ["card.json", "weights.safetensors", "workflow.yaml"]
    card = json.loads((made.folder / "card.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((made.folder / "weights.safetensors").read_bytes()).hexdigest()
    assert card["weights_sha256"] == digest == made.sha256
    assert card["parameters"] == sum(one.numel() for one in made.network.parameters())
    assert card["card"]["fidelity"] in ("verified", "reconstruction", "inspired")


def test_an_older_folder_is_replaced_whole(make_model: Make) -> None:
    first = make_model(seed=0)
    (first.folder / "stray").write_text("x", encoding="utf-8")
    second = make_model(seed=1)
    assert second.sha256 != first.sha256
    assert model_folder.read(second.folder).weights_sha256 == second.sha256
    assert not (second.folder / "stray").exists()


@pytest.mark.parametrize("inside", ["", "artifacts", "artifacts/artifacts"])
def test_either_folder_may_be_given(make_model: Make, tmp_path: Path, inside: str) -> None:
    made = make_model()
    shutil.copytree(made.folder, tmp_path / "outer" / inside)
    assert model_folder.read(tmp_path / "outer").weights_sha256 == made.sha256


def _edit_card(folder: Path, **changes: Any) -> None:
    path = folder / "card.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**card, **changes}), encoding="utf-8")


def _one_sentence(error: ModelError) -> bool:
    return len(str(error).splitlines()) == 1


def test_changed_weights_are_refused(make_model: Make) -> None:
    made = make_model()
    path = made.folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not those that the card names") as caught:
        model_folder.read(made.folder)
    assert _one_sentence(caught.value)


def test_a_newer_card_is_refused(make_model: Make) -> None:
    made = make_model()
    _edit_card(made.folder, format=99)
    with pytest.raises(ModelError, match=r"card format 99 is newer.*install") as caught:
        model_folder.read(made.folder)
    assert _one_sentence(caught.value)


def test_an_unknown_plugin_is_refused(make_model: Make) -> None:
    made = make_model()
    path = made.folder / "workflow.yaml"
    text = path.read_text(encoding="utf-8").replace("wau_unet", "not_installed_net")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="not_installed_net"):
        model_folder.read(made.folder)


@pytest.mark.parametrize(
    "card", ["", "[]", "{}", '{"format": 1, "weights_sha256": 3, "plugin": 4}']
)
def test_a_broken_card_is_refused(make_model: Make, card: str) -> None:
    made = make_model()
    (made.folder / "card.json").write_text(card, encoding="utf-8")
    with pytest.raises(ModelError, match=r"card\.json"):
        model_folder.read(made.folder)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a model folder"):
        model_folder.read(tmp_path)


def test_a_folder_without_weights_is_refused(make_model: Make) -> None:
    made = make_model()
    (made.folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights\.safetensors: cannot be read"):
        model_folder.read(made.folder)


def test_weights_that_do_not_fit_name_the_first_ten(make_model: Make) -> None:
    from safetensors.torch import load_file, save_file

    made = make_model()
    path = made.folder / "weights.safetensors"
    state = load_file(str(path))
    renamed = {f"other.{name}": tensor for name, tensor in state.items()}
    save_file(renamed, str(path))
    _edit_card(made.folder, weights_sha256=model_folder.file_sha256(path))
    with pytest.raises(ModelError, match="do not fit the network") as caught:
        model_folder.read(made.folder)
    assert f"{2 * len(state)} names" in str(caught.value)
    assert str(caught.value).count(" for ") - 1 == 10


@pytest.mark.parametrize("size", [8, 1 << 60])
def test_a_forged_header_is_refused_before_memory_is_taken(make_model: Make, size: int) -> None:
    made = make_model()
    path = made.folder / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"not json")
    _edit_card(made.folder, weights_sha256=model_folder.file_sha256(path))
    with pytest.raises(ModelError, match="not a safetensors file"):
        model_folder.read(made.folder)


def test_tied_weights_are_written_twice_and_load(make_model: Make, tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(3, 3)
            self.second = self.first

    made = make_model()
    model_folder.write(tmp_path / "tied", Tied(), made.workflow, _card())
    from safetensors.torch import load_file

    state = load_file(str(tmp_path / "tied" / "weights.safetensors"))
    assert sorted(state) == ["first.bias", "first.weight", "second.bias", "second.weight"]


def _card() -> Any:
    from medplat import registry

    return registry.model("wau_unet").CARD
