"""One volume on another's grid: linear resampling, and rigid registration before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medplat.errors import Refused
from medplat.types import Affine, Geometry

Values = npt.NDArray[np.float32]
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def resample(values: Values, own: Geometry, target: Geometry) -> Values:
    """Linear interpolation of (C, x, y, z) onto the target grid.

    What lies outside the source takes the channel's least value.
    """
    return _resample(values, np.linalg.inv(own.affine) @ target.affine, target)


def _resample(values: Values, index_map: Affine, target: Geometry) -> Values:
    from scipy.ndimage import affine_transform

    channels = [
        affine_transform(
            channel,
            index_map[:3, :3],
            offset=index_map[:3, 3],
            output_shape=target.shape,
            output=np.float32,
            order=1,
            mode="constant",
            cval=float(channel.min()),
        )
        for channel in values
    ]
    return np.stack(channels)


def register(values: Values, own: Geometry, fixed: Values, target: Geometry) -> Values:
    """Align (C, x, y, z) rigidly to `fixed` (x, y, z) and resample it onto the target grid.

    SimpleITK: six parameters, Mattes mutual information on 2 levels, fixed sampling seed; starts
    from the centres of the two grids.

    Raises:
        Refused: FRAME_OF_REFERENCE where no alignment is found.
    """
    import SimpleITK as sitk  # noqa: N813

    still, moving = _itk(fixed, target.affine), _itk(values[0], own.affine)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1.0, 0.0])
    start = sitk.CenteredTransformInitializer(
        still,
        moving,
        sitk.Euler3DTransform(),
        sitk.CenteredTransformInitializerFilter.GEOMETRY,
    )
    method.SetInitialTransform(start, inPlace=False)
    try:
        found = method.Execute(still, moving)
    except RuntimeError as error:
        raise Refused(
            "FRAME_OF_REFERENCE", "rigid registration to the first input found no overlap"
        ) from error
    return _resample(values, np.linalg.inv(own.affine) @ _world(found) @ target.affine, target)


def _itk(values: Values, affine: Affine) -> Any:
    """(x, y, z) with an RAS affine as a SimpleITK image (LPS)."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    lps = RAS_TO_LPS @ affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in lps[:3, 3]])
    image.SetDirection([float(value) for value in (lps[:3, :3] / spacing).ravel()])
    return image


def _world(transform: Any) -> Affine:
    """The transform, fixed to moving, as a (4, 4) matrix on RAS points."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        point = [0.0, 0.0, 0.0]
        point[axis] = 1.0
        matrix[:3, axis] = np.array(transform.TransformPoint(tuple(point))) - origin
    matrix[:3, 3] = origin
    return np.asarray(RAS_TO_LPS @ matrix @ RAS_TO_LPS, dtype=np.float64)
