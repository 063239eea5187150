"""Cases to batches: read, transform once and keep, cut patches, augment.

Nothing random here depends on what was drawn before: the order of an epoch comes from (seed,
epoch), the patch and the augmentation of a case from (seed, epoch, case, patch). So a resumed
training sees what an uninterrupted one sees, with any number of loader workers.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.transforms import Transform
from torch.utils.data import DataLoader, Sampler, default_collate

from medplat import transforms
from medplat.errors import DataError, MedplatError, Refused
from medplat.loaders import degraded
from medplat.loaders.images import check_directions, read_image, same_grid, stack
from medplat.tasks import classify, segment
from medplat.types import Array, Case, Geometry, Image
from medplat.workflow.schema import ClassifyTask, RestoreTask, SegmentTask, TrainWorkflow

KEYS = {"segment": ("image", "label"), "classify": ("image",), "restore": ("image", "reference")}
CENTRES = 20_000  # voxels of each label that are remembered as possible patch centres
Key = tuple[int, int, int]  # epoch, case, patch


def read_case(case: Case, workflow: TrainWorkflow) -> dict[str, Any]:
    """Read a case's images and truth on its own grid.

    Returns:
        `case`, `patient`; `image` MetaTensor (C, *spatial) float32; `geometry` of the first image;
        for segment `label` MetaTensor (1, *spatial) and `truth` (*spatial), both class indices; for
        classify `truth`, the class index. Without label or target there is no `truth`. For restore
        `image` is (C, x, y, z), a reference of its own being its last channels, and no `truth`.

    Raises:
        DataError: A file cannot be read or the label holds an unknown value.
        Refused: The images do not fit together, LABEL_GRID_MISMATCH, or NO_GEOMETRY where a
            transform needs directions that are not known.
    """
    volumes = [read_image(case.images[one.name], one.channels) for one in workflow.inputs]
    check_directions(volumes, workflow, f"case {case.case}: ")
    inputs, dims = workflow.inputs, workflow.task.spatial_dims
    if isinstance(workflow.task, RestoreTask):
        dims = 3
        if workflow.task.reference == "label":
            inputs = (*inputs, inputs[0].model_copy(update={"name": "reference"}))
            volumes.append(read_image(Image(_reference(case)), inputs[0].channels))
    image = stack(volumes, inputs, dims, workflow.infer.register_)
    read = {"case": case.case, "patient": case.patient, "image": image}
    read["geometry"] = volumes[0].geometry
    if isinstance(workflow.task, SegmentTask):
        if case.label is not None:
            read["truth"] = _read_label(case, workflow.task, volumes[0].geometry)
            label = torch.from_numpy(read["truth"])[None]
            read["label"] = MetaTensor(label, affine=image.affine.clone())
    elif isinstance(workflow.task, ClassifyTask) and case.target is not None:
        read["truth"] = classify.to_index(case.target, workflow.task, f"case {case.case}")
    return read


def _reference(case: Case) -> Path:
    if case.label is None:
        raise DataError(f"case {case.case}: has no reference image: give it one or leave it out")
    return case.label


def _read_label(case: Case, task: SegmentTask, geometry: Geometry) -> Array:
    assert case.label is not None
    volume = read_image(Image(case.label))
    values = volume.array
    if volume.slope != 1.0 or volume.intercept != 0.0:
        values = values * volume.slope + volume.intercept
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3 or not same_grid(volume.geometry, geometry):
        raise Refused(
            "LABEL_GRID_MISMATCH",
            f"case {case.case}: the label's grid {values.shape} is not the first image's "
            f"{geometry.shape}, or lies elsewhere: resample the label to the image",
        )
    indices = segment.to_indices(values, task, f"case {case.case}: label")
    return np.ascontiguousarray(indices[..., 0] if task.spatial_dims == 2 else indices)


class Prepare(Transform):  # type: ignore[misc]
    """A `Case` to its tensors after the workflow's deterministic transforms.

    Args:
        workflow: The train workflow.
        training: Keep what patches are cut from (`label`, `centres`); else keep what a prediction
            is measured with (`truth`, `geometry`).
    """

    def __init__(self, workflow: TrainWorkflow, training: bool) -> None:
        self.workflow = workflow
        self.training = training
        # What is measured is prepared as at inference: no transform may see the truth.
        self._compose = transforms.compose(workflow.transforms, allow_missing_keys=not training)

    def __call__(self, case: Case) -> dict[str, Any]:
        """Read and transform; any failure names the case.

        Raises:
            DataError: The case has no truth, cannot be read, or a transform fails on it.
        """
        try:
            read = read_case(case, self.workflow)
        except Refused as error:
            raise DataError(f"case {case.case}: {error}: mend it or leave it out") from error
        if self.workflow.task.kind == "restore":
            return degraded.prepare(self._transformed(read), self.workflow, training=self.training)
        if "truth" not in read:
            what = "label" if self.workflow.task.kind == "segment" else "target"
            raise DataError(f"case {case.case}: has no {what}: give it one or leave it out")
        truth, geometry = read.pop("truth"), read.pop("geometry")
        if not self.training:
            read.pop("label", None)
        done = self._transformed(read)
        if self.training:
            return self._for_training(done, truth)
        return done | {"truth": truth, "geometry": geometry}

    def _transformed(self, read: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self._compose(read))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"case {read['case']}: transforms: {_first_line(error)}") from error

    def _for_training(self, done: dict[str, Any], truth: Any) -> dict[str, Any]:
        image = done["image"]
        if self.workflow.task.kind == "classify":
            return done | {"target": int(truth)}
        if done["label"].shape[1:] != image.shape[1:]:
            raise DataError(
                f"case {done['case']}: after the transforms the image is {tuple(image.shape[1:])} "
                f"and the label {tuple(done['label'].shape[1:])}: give both keys to each transform"
            )
        train = self.workflow.train
        if train.patch_size is not None and train.foreground > 0:
            classes = len(segment.section(self.workflow).labels)
            done["centres"] = _centres(np.asarray(done["label"])[0], classes, train.seed)
        return done


def _first_line(error: BaseException) -> str:
    """MONAI wraps the cause: the innermost error says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _centres(label: Array, classes: int, seed: int) -> list[Array]:
    """Voxels (n, spatial) of each label that occurs, at most `CENTRES` of each."""
    found = []
    for index in range(1, classes + 1):
        voxels = np.argwhere(label == index).astype(np.int32)
        if len(voxels) > CENTRES:
            kept = np.random.default_rng([seed, index]).choice(len(voxels), CENTRES, replace=False)
            voxels = voxels[np.sort(kept)]
        if len(voxels):
            found.append(voxels)
    return found


class Patches(torch.utils.data.Dataset[dict[str, Any]]):
    """Training examples by (epoch, case, patch): cut out, augmented, as plain tensors.

    Args:
        prepared: Prepared cases by index (cached or not).
        workflow: The train workflow.
    """

    def __init__(self, prepared: Sequence[Mapping[str, Any]], workflow: TrainWorkflow) -> None:
        self.prepared = prepared
        self.workflow, self.train = workflow, workflow.train
        self._keys = KEYS[workflow.task.kind]
        self._augment = transforms.compose(workflow.augment) if workflow.augment else None

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index, patch = key
        prepared = self.prepared[index]
        name = zlib.crc32(prepared["case"].encode())
        rng = np.random.default_rng([self.train.seed, epoch, name, patch])
        if self.workflow.task.kind == "restore":
            part = degraded.pair(prepared, self.workflow, rng)
        else:
            part = {one: prepared[one] for one in self._keys}
        if self.train.patch_size is not None:
            part = self._cut(part, prepared.get("centres"), rng)
        else:
            part = {one: value.clone() for one, value in part.items()}
        if self._augment is not None:
            self._augment.set_random_state(seed=int(rng.integers(2**31)))
            part = dict(self._augment(part))
        example: dict[str, Any] = {one: _plain(part[one]) for one in self._keys}
        example["case"] = prepared["case"]
        if "target" in prepared:
            example["target"] = prepared["target"]
        if "label" in example:
            example["label"] = _whole(example["label"], prepared["case"])
        return example

    def _cut(
        self, part: Mapping[str, Any], centres: list[Array] | None, rng: np.random.Generator
    ) -> dict[str, Any]:
        size = tuple(self.train.patch_size or ())
        shape = tuple(part["image"].shape[1:])
        on_label = bool(centres) and rng.random() < self.train.foreground
        if on_label and centres:
            voxels = centres[int(rng.integers(len(centres)))]
            middle = voxels[int(rng.integers(len(voxels)))]
            start = [int(at) - one // 2 for at, one in zip(middle, size, strict=True)]
        else:
            room = [have - one for have, one in zip(shape, size, strict=True)]
            start = [int(rng.integers(min(0, one), max(0, one) + 1)) for one in room]
        factor = getattr(self.workflow.task, "upscale", 1)
        finer = {"reference": factor}
        return {
            key: cut(value, *([one * finer.get(key, 1) for one in at] for at in (start, size)))
            for key, value in part.items()
        }


def cut(tensor: Any, start: Sequence[int], size: Sequence[int]) -> Any:
    """A patch of (C, *spatial): moved inside where it can be, padded with zeros where not.

    Where the image is as large as the patch along an axis, the patch lies wholly inside; where it
    is smaller, `start` (0 or below) says how many zeros come before it.
    """
    slices, pads = [slice(None)], []
    for begin, want, have in zip(start, size, tensor.shape[1:], strict=True):
        if have >= want:
            begin = min(max(begin, 0), have - want)
            slices.append(slice(begin, begin + want))
            pads.append((0, 0))
        else:
            before = min(max(-begin, 0), want - have)
            slices.append(slice(None))
            pads.append((before, want - have - before))
    patch = tensor[tuple(slices)].clone()
    if any(pair != (0, 0) for pair in pads):
        flat = [amount for pair in reversed(pads) for amount in pair]
        patch = torch.nn.functional.pad(patch, flat)
    return patch


def _plain(value: Any) -> torch.Tensor:
    tensor = value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)
    return tensor.contiguous()


def _whole(label: torch.Tensor, case: str) -> torch.Tensor:
    """The label as it was augmented, if it still holds class indices."""
    if label.is_floating_point() and not torch.equal(label, label.round()):
        raise DataError(
            f"case {case}: transforms or augment mix the values of neighbouring labels: "
            "give those that move voxels the mode nearest for the key label"
        )
    return label


class EpochOrder(Sampler[Key]):
    """Keys of one epoch, in an order from (seed, epoch); Lightning calls `set_epoch`."""

    def __init__(self, cases: int, patches: int, seed: int) -> None:
        self.cases, self.patches, self.seed = cases, patches, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.cases * self.patches

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self))
        for number in order.tolist():
            yield self.epoch, number // self.patches, number % self.patches


class Prepared(Sequence[Mapping[str, Any]]):
    """Prepared cases by index; errors come out as they were said, not as MONAI wraps them."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        with _as_it_was_said():
            return self._dataset[index]


@contextmanager
def _as_it_was_said() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MedplatError):
                raise cause from None
            cause = cause.__cause__
        raise


def prepare(
    cases: Sequence[Case], workflow: TrainWorkflow, *, training: bool, cache: bool | None = None
) -> Prepared:
    """Prepared cases by index: all in memory with `train.cache`, else made at each access.

    Raises:
        DataError: A case cannot be prepared (with a cache: at once; else when it is read).
    """
    step = Prepare(workflow, training)
    if not (workflow.train.cache if cache is None else cache):
        return Prepared(Dataset(list(cases), step))
    threads = min(4, os.cpu_count() or 1)
    with _as_it_was_said():
        return Prepared(
            CacheDataset(list(cases), step, num_workers=threads, progress=False, copy_cache=False)
        )


def size_in_memory(prepared: Mapping[str, Any]) -> int:
    """Bytes of the tensors and arrays of one prepared case."""
    total = 0
    for value in prepared.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, torch.Tensor):
                total += part.numel() * part.element_size()
            elif isinstance(part, np.ndarray):
                total += part.nbytes
    return total


def train_loader(
    prepared: Sequence[Mapping[str, Any]], workflow: TrainWorkflow
) -> DataLoader[dict[str, Any]]:
    """Batches of `image` (B, C, *spatial) and `label` (B, 1, *spatial), `reference` or `target`.

    Bags of different sizes stay a list of (C, n). `case` names the cases.
    """
    train = workflow.train
    workers = train.loader_workers
    return DataLoader(
        Patches(prepared, workflow),
        batch_size=train.batch_size,
        sampler=EpochOrder(len(prepared), train.patches_per_case, train.seed),
        num_workers=workers,
        collate_fn=together,
        generator=torch.Generator().manual_seed(train.seed),
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
    )


def together(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Examples as one batch.

    Raises:
        DataError: Their images differ in size.
    """
    sizes = dict.fromkeys("x".join(map(str, one["image"].shape[1:])) for one in examples)
    if len(sizes) > 1 and examples[0]["image"].ndim == 2:
        bags = [one.pop("image") for one in examples]
        return dict(default_collate(examples)) | {"image": bags}
    if len(sizes) > 1:
        raise DataError(
            f"a batch holds images of {' and '.join(list(sizes)[:2])} voxels: set "
            "train.patch_size, or bring them to one size by a transform (ResizeWithPadOrCropd)"
        )
    return dict(default_collate(examples))


def validation_loader(prepared: Sequence[Mapping[str, Any]]) -> DataLoader[dict[str, Any]]:
    """Whole cases, one at a time, in order."""
    return DataLoader(
        prepared,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=0,
        generator=torch.Generator(),
    )


def class_counts(cases: Sequence[Case], workflow: TrainWorkflow) -> list[int] | None:
    """Cases of each class; None where there are no classes of cases."""
    if not isinstance(workflow.task, ClassifyTask):
        return None
    found = [case.target for case in cases]
    return [found.count(name) for name in workflow.task.classes]
