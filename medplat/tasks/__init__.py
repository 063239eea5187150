"""Tasks: loss, metrics and decoding of what a network returns.

One module for each kind, each with the same five names (`TaskModule`), so that training, evaluation
and inference know nothing of a particular task. Torch and MONAI are imported inside functions only:
`import medplat.tasks` is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from medplat.errors import WorkflowError
from medplat.types import Array, Task
from medplat.workflow.schema import ClassifyTask, RestoreTask, TrainWorkflow

if TYPE_CHECKING:
    from torch import Tensor

    Logits = Tensor | Sequence[Tensor]
    Loss = Callable[[Logits, Mapping[str, Any]], Tensor]

KINDS = ("segment", "classify", "restore")


class TaskModule(Protocol):
    """What `get` returns: a module with these names.

    Attributes:
        PRIMARY: The key of `summary` by which the best checkpoint is chosen; more is better.
    """

    PRIMARY: str

    def loss(self, workflow: TrainWorkflow, class_counts: Sequence[int] | None = None) -> Loss:
        """The training loss: a function of (logits, batch) -> scalar float32 tensor.

        Args:
            workflow: The train workflow.
            class_counts: Training cases of each class, for `train.class_weights`.
        """
        ...

    def decode(self, logits: Tensor) -> Tensor:
        """Logits of one case, (C, *spatial), to what `case_metrics` and the outputs want.

        segment: (*spatial) class indices, 0 the background. classify: (C,) probabilities.
        restore: (C, *spatial) values, 0 and 1 being the ends of the range that the network saw.
        """
        ...

    def case_metrics(
        self,
        workflow: TrainWorkflow,
        prediction: Array,
        truth: Array,
        spacing_mm: Sequence[float],
        *,
        distances: bool = False,
    ) -> dict[str, float]:
        """The numbers of one case; NaN where a number is undefined (never 0 or 1 instead)."""
        ...

    def summary(
        self, workflow: TrainWorkflow, rows: Sequence[Mapping[str, float]]
    ) -> dict[str, float]:
        """The numbers of a set of cases, out of their `case_metrics`; holds `PRIMARY`."""
        ...


def task_of(workflow: TrainWorkflow) -> Task:
    """The task as a model plugin's `build` wants it.

    segment counts the background as a class; restore gives the channels of the first input.
    """
    section, upscale = workflow.task, 1
    if isinstance(section, ClassifyTask):
        out_channels = len(section.classes)
    elif isinstance(section, RestoreTask):
        out_channels, upscale = workflow.inputs[0].channels, section.upscale
    else:
        out_channels = len(section.labels) + 1
    in_channels = sum(one.channels for one in workflow.inputs)
    return Task(section.kind, section.spatial_dims, in_channels, out_channels, upscale)


def get(kind: str) -> TaskModule:
    """The module of one kind of task ("segment", "classify", "restore").

    Raises:
        WorkflowError: There is no such kind.
    """
    if kind not in KINDS:
        raise WorkflowError([f"task.kind: '{kind}' is none of {', '.join(KINDS)}"])
    return cast(TaskModule, import_module(f"medplat.tasks.{kind}"))


def mean_and_count(rows: Sequence[Mapping[str, float]], name: str) -> tuple[float, int]:
    """Mean over the cases in which `name` is defined (NaN if in none), and their number."""
    values = [row[name] for row in rows if name in row and row[name] == row[name]]
    return (sum(values) / len(values) if values else float("nan")), len(values)
