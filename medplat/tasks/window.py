"""Run a network over one image: by windows, at once for classify.

Training's validation, `evaluate` and `infer` all use this one function.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from torch import nn

from medplat.types import Task
from medplat.workflow.schema import TrainWorkflow


def predict(
    network: nn.Module,
    image: MetaTensor | torch.Tensor,
    workflow: TrainWorkflow,
    task: Task,
    device: torch.device | str = "cpu",
    *,
    multiple: int = 1,
) -> torch.Tensor:
    """Logits of a network for one prepared image.

    The window is `infer.window`, else `train.patch_size`, else the whole image; each side is
    rounded up to `multiple`, and a smaller image is padded with zeros, which are cut off again.

    Args:
        network: On `device`, in evaluation mode; with deep supervision its first output counts.
        image: (C, *spatial), after the workflow's transforms; the windows are summed on its device.
            For restore (C, x, y, z), of which a 2-D task takes each slice.
        workflow: The model's own workflow.
        task: What the network was built for.
        device: Where the network runs.
        multiple: The plugin's `CARD.multiple`.

    Returns:
        float32 logits: (out_channels, *spatial) for segment and restore, `task.upscale` times as
        large; (out_channels,) for classify.

    Raises:
        ValueError: The image has other dimensions than the task.
    """
    slices = task.kind == "restore" and task.spatial_dims == 2
    if image.ndim != (4 if slices else task.spatial_dims + 1):
        raise ValueError(f"the image has {image.ndim - 1} dimensions, the task {task.spatial_dims}")
    values = (image.as_tensor() if isinstance(image, MetaTensor) else image).to(torch.float32)
    batch = values.permute(3, 0, 1, 2) if slices else values[None]
    with torch.no_grad():
        if task.kind == "classify":
            return _fresh(network(batch.to(device)))[0]
        window = window_size(workflow, tuple(batch.shape[2:]), multiple)
        logits = sliding_window_inference(
            batch,
            roi_size=window,
            sw_batch_size=workflow.infer.batch_size,
            predictor=lambda windows: _fresh(network(windows)),
            overlap=workflow.infer.overlap,
            mode="gaussian",
            sw_device=device,
            device=batch.device,
        )
    found = torch.as_tensor(logits)
    return found.permute(1, 2, 3, 0) if slices else found[0]


def window_size(
    workflow: TrainWorkflow, shape: Sequence[int], multiple: int = 1
) -> tuple[int, ...]:
    """The window that `predict` uses for an image of this shape."""
    size = workflow.infer.window or workflow.train.patch_size or tuple(shape)
    return tuple(-(-one // multiple) * multiple for one in size)


def _fresh(output: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """The first output as a float32 tensor of its own: MONAI multiplies it in place."""
    first = output if isinstance(output, torch.Tensor) else output[0]
    return first.detach().to(torch.float32, copy=True)
