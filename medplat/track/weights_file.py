"""A user's weights file as a flat state dict: `.safetensors`, or a checkpoint of torch.

torch's files are pickles. They are read with `weights_only=True`, which builds tensors, numbers and
containers and refuses everything else; nothing that a file holds is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medplat.errors import MissingExtra, ModelError

# Where training programs keep the weights within their checkpoint, the likeliest first.
HOLDERS = ("state_dict", "network_weights", "model_state_dict", "model", "net", "params")
# What wrappers put before every name: DistributedDataParallel, torch.compile.
WRAPPERS = ("module.", "_orig_mod.")


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name, on the CPU, wrappers' prefixes taken off.

    Args:
        path: `.safetensors`, or anything that `torch.save` wrote.

    Raises:
        ModelError: The file cannot be read without running code, or holds no state dict.
    """
    loaded = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    state = _state_dict(loaded)
    if state is None:
        raise ModelError(
            f"{path}: holds no state dict, neither at its top nor under "
            f"{', '.join(HOLDERS)}; save it again with torch.save(model.state_dict(), FILE)"
        )
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise MissingExtra("medplat import-checkpoint", "safetensors") from error
    try:
        return dict(load_file(str(path)))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a whole safetensors file ({_first_line(error)})") from error


def _torch(path: Path) -> Any:
    try:
        with _numbers_of_numpy():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        if type(error).__name__ != "UnpicklingError":
            raise ModelError(f"{path}: not a whole torch file ({type(error).__name__})") from error
        raise ModelError(
            f"{path}: holds more than weights, which only running its code could load "
            f"({_named(error)}); in the program that wrote it, save the weights alone with "
            "torch.save(model.state_dict(), FILE)"
        ) from error


@contextmanager
def _numbers_of_numpy() -> Iterator[None]:
    """Lets numpy's numbers and arrays pass, which checkpoints of nnU-Net hold in their log."""
    kinds = [type(np.dtype(one)) for one in ("f8", "f4", "f2", "i8", "i4", "u1", "?")]
    make: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    with torch.serialization.safe_globals([*make, np.ndarray, np.dtype, *kinds]):
        yield


def _state_dict(loaded: Any) -> dict[str, torch.Tensor] | None:
    """The first mapping of names to tensors: the file's own, or in one of its holders."""
    if not isinstance(loaded, Mapping) or not loaded:
        return None
    if all(isinstance(one, torch.Tensor) for one in loaded.values()):
        return {str(name): tensor for name, tensor in loaded.items()}
    held = (_state_dict(loaded[holder]) for holder in HOLDERS if holder in loaded)
    return next((state for state in held if state), None)


def _named(error: BaseException) -> str:
    """The class that torch refused, out of its long advice."""
    text = str(error)
    _, found, rest = text.partition("GLOBAL ")
    return rest.split()[0] if found else _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
