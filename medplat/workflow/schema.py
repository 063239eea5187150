"""What may stand in a workflow file: pydantic models, nothing unknown allowed, nothing changeable.

Defaults live here and nowhere else. `dataset` and `model` name a plugin; their other keys are those
of the plugin's own `Config` and are checked in a second step (`workflow.read`).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
RegistryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Nothing unknown, nothing changed afterwards, no silent conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class PluginSection(BaseModel):
    """A section whose remaining keys belong to the plugin that `name` names."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    name: str = Field(description="The plugin, by its file name; see `medplat list`.")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are the plugin's own."""
        return dict(self.__pydantic_extra__ or {})


class Input(Strict):
    """One channel of the model, and how to find it among the series of a study.

    Every given condition must hold. Patterns are shell patterns (`*`, `?`), upper and lower case
    alike, on the scrubbed SeriesDescription.
    """

    name: Name = Field(description="Channel name: pre, early, t1ce ...")
    channels: Positive = Field(
        1, description="1; 3 for colour pictures; of a bag the numbers of one feature vector."
    )
    modality: str | None = Field(None, description="DICOM modality: CT, MR, PT ...")
    description: tuple[str, ...] = Field((), description="Any of these patterns fits.")
    not_description: tuple[str, ...] = Field((), description="None of these patterns fits.")
    orientation: Literal["axial", "coronal", "sagittal"] | None = None
    slice_thickness_mm: tuple[float, float] | None = Field(
        None, description="From, to; both ends in."
    )
    contrast: bool | None = Field(
        None, description="Whether a contrast agent is named in the header."
    )
    original: bool | None = Field(None, description="True leaves out derived series (reformats).")
    phase: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Index of the phase, from 0."
    )
    phase_time_s: Annotated[float, Field(ge=0)] | None = Field(
        None, description="The phase nearest to these seconds after the first one."
    )
    phase_tolerance_s: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="How far it may lie from them; None: half of phase_time_s, at least 15 s.",
    )

    @model_validator(mode="after")
    def _one_phase_rule(self) -> Input:
        if self.phase is not None and self.phase_time_s is not None:
            raise ValueError("give phase or phase_time_s, not both")
        if self.phase_time_s is None and self.phase_tolerance_s is not None:
            raise ValueError("phase_tolerance_s goes with phase_time_s")
        return self


class Split(Strict):
    """Which cases train and which validate. Always by patient; the first rule that is given holds.

    A data set that fixes the split itself (a table column) is followed, and then nothing may be
    given here.
    """

    file: Path | None = Field(None, description="CSV with the columns case (or patient) and split.")
    every: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Every n-th case (n, 2n, ...) validates, with all cases of its patient."
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Parts for cross-validation, by patient; classes spread evenly."
    )
    fold: Annotated[int, Field(ge=1)] = Field(
        1, description="Which of the folds validates, from 1; the others train."
    )
    validation: Fraction = Field(0.2, description="Share of the patients that validate.")
    test: Fraction = Field(0.0, description="Share of the patients set aside for `evaluate`.")
    seed: int = 0

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> Split:
        if self.fold > (self.folds or 1):
            raise ValueError(f"fold {self.fold} is not one of {self.folds or 'no'} folds")
        return self


class Dataset(PluginSection):
    """The data set: a plugin and its keys, and the split."""

    split: Split = Split()


class Code(Strict):
    """A coded concept, for DICOM objects."""

    value: str
    scheme: str = "SCT"
    meaning: str


class Label(Strict):
    """One structure of a segmentation."""

    name: Name
    value: Annotated[int, Field(gt=0, le=65535)] = Field(
        description="Its value in the label files."
    )
    last: Annotated[int, Field(gt=0, le=65535)] | None = Field(
        None,
        description="Values from `value` up to this one are read as this label: instances, or "
        "parts that count as one structure.",
    )
    code: Code | None = Field(None, description="SNOMED CT code of the structure, for DICOM SEG.")

    @property
    def values(self) -> range:
        """Every value of the label files that means this label."""
        return range(self.value, (self.last or self.value) + 1)

    @model_validator(mode="after")
    def _last_is_not_first(self) -> Label:
        if self.last is not None and self.last < self.value:
            raise ValueError(f"last, {self.last}, is less than value, {self.value}")
        return self


class SegmentTask(Strict):
    """Voxel-wise segmentation; background is implied and has the value 0."""

    kind: Literal["segment"]
    spatial_dims: Literal[2, 3] = 3
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _labels_differ(self) -> SegmentTask:
        names = [label.name for label in self.labels]
        if len(set(names)) < len(names):
            raise ValueError("two labels have the same name")
        ordered = sorted((label.values for label in self.labels), key=lambda one: one.start)
        if any(one.stop > other.start for one, other in pairwise(ordered)):
            raise ValueError("two labels have the same value")
        return self


class ClassifyTask(Strict):
    """One class for each case: an image, or a bag of feature vectors (multiple instances)."""

    kind: Literal["classify"]
    spatial_dims: Literal[1, 2, 3] = Field(
        2, description="1: bags of feature vectors, one .safetensors file a case."
    )
    classes: Annotated[tuple[str, ...], Field(min_length=2)]


Above0 = Annotated[float, Field(gt=0)]


class Rician(Strict):
    """Noise of a magnitude MR image: Gaussian in the real and in the imaginary part."""

    kind: Literal["rician"]
    noise_percent: Above0 = Field(
        description="Its standard deviation in % of the clean image's 99.9th percentile."
    )


class KSpace(Strict):
    """MR with lines of k-space left out, zeros in their place; one mask for all slices."""

    kind: Literal["kspace"]
    acceleration: Annotated[float, Field(gt=1)] = Field(
        4.0, description="All lines divided by the lines that are kept."
    )
    centre: Fraction = Field(0.08, description="Share of all lines kept in the middle.")
    lines: Literal["random", "regular"] = Field("random", description="The others that are kept.")
    axis: Literal["x", "y"] = Field("y", description="Phase encoding: lines differ along it.")


class Sinogram(Strict):
    """CT in HU with few photons or few views: Poisson counts, filtered back-projection."""

    kind: Literal["sinogram"]
    photons: Above0 = Field(100_000.0, description="Of a ray that meets nothing.")
    views: Positive = Field(360, description="Parallel projections over half a turn.")
    water_per_mm: Above0 = Field(
        0.0193, description="Attenuation of water; 0.0193 is that at 70 keV."
    )


class Blur(Strict):
    """A Gaussian point spread; of a 2-D task within the slice."""

    kind: Literal["blur"]
    fwhm_mm: Above0 = Field(description="Full width at half maximum.")


Degradation = Annotated[Rician | KSpace | Sinogram | Blur, Field(discriminator="kind")]


class RestoreTask(Strict):
    """An image out of a degraded one. A 2-D task works on each slice of a volume."""

    kind: Literal["restore"]
    spatial_dims: Literal[2, 3] = 2
    reference: Literal["image", "label"] = Field(
        "image", description="The clean image, out of which the input is made; or the label file."
    )
    degrade: tuple[Degradation, ...] = Field(
        (), description="What is done to the clean image, one after the other."
    )
    upscale: Literal[1, 2, 3, 4] = Field(
        1, description="Voxels of the output for one of the input, along each axis."
    )
    range: tuple[float, float] | None = Field(
        None,
        description="Values that the network sees as 0 and 1 (HU of a CT); null: the 0.5th and "
        "99.5th percentile of each input image.",
    )
    fresh: bool = Field(
        True, description="Degrade anew for each training example; false: once for each case."
    )

    @model_validator(mode="after")
    def _something_to_restore(self) -> RestoreTask:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("range: its first number must be less than its second")
        made = bool(self.degrade) or self.upscale > 1
        if self.reference == "image" and not made:
            raise ValueError("degrade: is empty; say what is done to the clean images")
        if self.reference == "label" and made:
            raise ValueError("reference label: leave out degrade and upscale")
        return self


class Model(PluginSection):
    """The network: a plugin and its keys."""


class Train(Strict):
    """How the network is trained."""

    epochs: Positive = 100
    batch_size: Positive = 2
    patch_size: tuple[Positive, ...] | None = Field(
        None, description="Voxels cut out of a case for training, and the window of inference."
    )
    patches_per_case: Positive = Field(1, description="Patches cut from each case in each epoch.")
    foreground: Fraction = Field(0.5, description="Share of the patches centred on a label.")
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    warmup: Fraction = Field(0.02, description="Share of the steps in which the rate rises.")
    schedule: Literal["cosine", "constant"] = "cosine"
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto", description="auto: bf16 on GPUs that have it, else 16 with scaling; 32 on a CPU."
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="Decay of the mean.")
    accumulate: Positive = Field(1, description="Batches summed before a step.")
    clip: Annotated[float, Field(gt=0)] | None = Field(1.0, description="Gradient norm.")
    early_stop: Positive | None = Field(None, description="Validations without a better result.")
    validate_every: Positive = Field(1, description="Epochs between validations.")
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(None, description="Wall time limit.")
    class_weights: bool = Field(False, description="classify: weigh classes by inverse frequency.")
    cache: bool = Field(True, description="Keep the deterministic transforms' results in memory.")
    loader_workers: Annotated[int, Field(ge=0)] = 0
    seed: int = 0
    deterministic: bool = True


class Infer(Strict):
    """How the model is run over a case; travels inside the model."""

    window: tuple[Positive, ...] | None = Field(
        None, description="Voxels of one window; None: train.patch_size, else the whole image."
    )
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_size: Positive = 4
    register_: Literal["no", "rigid"] = Field(
        "no", alias="register", description="rigid: align inputs of other frames of reference."
    )


class Track(Strict):
    """Where the run is logged and under which name its best model is registered."""

    experiment: RegistryName = "medplat"
    register_: RegistryName | None = Field(None, alias="register")
    alias: RegistryName | None = "candidate"


class Evaluate(Strict):
    """A registered model measured on a data set."""

    model: str = Field(
        description="models:/name@alias, models:/name/3, runs:/ID or a model folder."
    )
    split: Literal["train", "validation", "test", "all"] = "test"
    missing: Literal["fail", "worst", "exclude"] = Field(
        "fail", description="A case that fails: stop, score it worst, or leave it out and say so."
    )
    replicates: Positive = 2000
    seed: int = 0


class Convert(Strict):
    """Defaults of a conversion; the command line's own options win."""

    split_phases: bool = False
    gzip_level: Annotated[int, Field(ge=0, le=9)] = 1


TransformList = tuple[dict[str, dict[str, Any]], ...]


class ConvertWorkflow(Strict):
    """`medplat convert SOURCE OUT --workflow FILE`."""

    kind: Literal["convert"]
    dataset: Dataset | None = None
    transforms: TransformList = ()
    convert: Convert = Convert()


class TrainWorkflow(Strict):
    """`medplat train FILE`."""

    kind: Literal["train"]
    inputs: Annotated[tuple[Input, ...], Field(min_length=1)] = (Input(name="image"),)
    dataset: Dataset
    transforms: TransformList = Field((), description="Deterministic; also run at inference.")
    augment: TransformList = Field((), description="Random; training only.")
    task: Annotated[SegmentTask | ClassifyTask | RestoreTask, Field(discriminator="kind")]
    model: Model
    train: Train = Train()
    infer: Infer = Infer()
    track: Track = Track()

    @model_validator(mode="after")
    def _sizes_fit(self) -> TrainWorkflow:
        names = [one.name for one in self.inputs]
        if len(set(names)) < len(names):
            raise ValueError("two inputs have the same name")
        if self.task.spatial_dims == 1:
            return self._bag_fits()
        for one in self.inputs:
            if one.channels not in (1, 3):
                raise ValueError(f"inputs: {one.name}: an image has 1 or 3 channels")
        for where, size in (
            ("train.patch_size", self.train.patch_size),
            ("infer.window", self.infer.window),
        ):
            if size is not None and len(size) != self.task.spatial_dims:
                raise ValueError(
                    f"{where} has {len(size)} numbers, "
                    f"task.spatial_dims is {self.task.spatial_dims}"
                )
        return self

    def _bag_fits(self) -> TrainWorkflow:
        if len(self.inputs) > 1:
            raise ValueError("task.spatial_dims 1: a bag is one input")
        for where in ("train.patch_size", "infer.window"):
            section, key = where.split(".")
            if getattr(getattr(self, section), key) is not None:
                raise ValueError(f"{where}: a bag is taken whole; leave it out")
        return self


class EvaluateWorkflow(Strict):
    """`medplat evaluate FILE`. Inputs, transforms and task are the model's own."""

    kind: Literal["evaluate"]
    dataset: Dataset
    evaluate: Evaluate
    track: Track = Track(alias=None)


Workflow = Annotated[
    ConvertWorkflow | TrainWorkflow | EvaluateWorkflow, Field(discriminator="kind")
]
