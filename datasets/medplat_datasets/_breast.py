"""A synthetic breast: its anatomy in patient space, and what MR sequences see of it.

Nothing here was measured on a patient. The shapes are ellipsoids and tubes with random waves, the
enhancement curves are written down, and only their order follows what breast MRI teaches: a cancer
takes contrast agent up early and washes out, a benign lump enhances slowly and persistently, a
vessel is bright at once, and a cyst with protein is bright before any contrast agent. The image
of one phase alone therefore does not tell the lesion from the distractors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medplat.types import Array, Geometry

Field = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

# Signal of each tissue before contrast agent, in stored units; fat is suppressed in T1.
T1 = {"fat": 90, "gland": 240, "skin": 200, "muscle": 225, "lung": 25, "blood": 180}
T1 |= {"vessel": 180, "cyst": 560, "benign": 245, "lesion": 240}
T2 = {"fat": 420, "gland": 620, "skin": 260, "muscle": 160, "lung": 25, "blood": 120}
T2 |= {"vessel": 160, "cyst": 1150, "benign": 760, "lesion": 520}
NOISE = 14.0
INJECTION_S = 20.0
PLANES = {  # columns, rows and slices as directions in RAS+
    "axial": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "sagittal": ((0, -1, 0), (0, 0, -1), (1, 0, 0)),
    "coronal": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
}


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random field, the same on every grid: a sum of cosines with unit variance."""

    vectors: Vector
    shifts: Vector

    @classmethod
    def draw(cls, rng: np.random.Generator, length_mm: float, count: int = 20) -> Waves:
        """Waves whose typical length is `length_mm`."""
        vectors = rng.normal(size=(count, 3)) * (2 * np.pi / length_mm / np.sqrt(3))
        return cls(vectors, rng.uniform(0, 2 * np.pi, count))

    def at(self, points: Field) -> Field:
        """Values at points (..., 3) in mm."""
        angle = points @ self.vectors.T.astype(np.float32) + self.shifts.astype(np.float32)
        return np.asarray(np.cos(angle).sum(-1) * np.sqrt(2 / len(self.shifts)), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Lump:
    """A lesion, a benign lump or a cyst: an ellipsoid whose surface is more or less rough."""

    kind: str
    centre: Vector
    radii: Vector
    rough: float
    surface: Waves

    def inside(self, points: Field, voxel_mm: float) -> Field:
        """How much of a voxel lies in the lump, 0 to 1; half at its surface."""
        away = (points - self.centre.astype(np.float32)) / self.radii.astype(np.float32)
        radius = _length(away)
        near = radius < 2
        share = np.zeros(radius.shape, np.float32)
        depth = 1 + self.rough * self.surface.at(points[near]) - radius[near]
        share[near] = _soft(depth * float(self.radii.mean()), voxel_mm / 4)
        return share


@dataclass(frozen=True, eq=False)
class Breast:
    """One breast at one visit, in its own axes: lateral, anterior, superior, mm from its base.

    Attributes:
        side: +1 for the right breast, -1 for the left one.
        centre: The middle of its base in RAS+ mm.
        size: Half width, depth and half height in mm.
        density: Share of gland, roughly 0 to 1.
        waves: Random fields by what they shape: gland, outline, bias, texture.
        lumps: Lesion first.
        vessels: Points along each vessel, (points, 3).
        curves: By tissue: amplitude, seconds of uptake, seconds of washout.
    """

    side: int
    centre: Vector
    size: Vector
    density: float
    waves: Mapping[str, Waves]
    lumps: tuple[Lump, ...]
    vessels: tuple[Vector, ...]
    curves: Mapping[str, tuple[float, float, float]]


def draw(seed: int, visit: int = 0) -> Breast:
    """The breast of patient `seed`; at a later visit the lesion has shrunk under treatment."""
    rng = np.random.default_rng([seed, 20])
    size = rng.uniform((50, 56, 46), (60, 72, 54))
    side = int(rng.choice((-1, 1)))
    centre = np.array([side * rng.uniform(72, 88), rng.uniform(20, 60), rng.uniform(-30, 30)])
    lengths = {"gland": 30.0, "outline": 70.0, "bias": 220.0, "texture": 9.0}
    waves = {key: Waves.draw(rng, length) for key, length in lengths.items()}
    kinds = ["lesion", "benign", "benign", "cyst"][: int(rng.integers(3, 5))]
    lumps = _place(kinds, size, rng)
    vessels = tuple(_vessel(size, rng) for _ in range(3))
    curves = {
        "fat": (0.03, 100.0, 1e6),
        "gland": (rng.uniform(0.15, 0.45), 320.0, 1e6),
        "skin": (0.3, 120.0, 1e6),
        "muscle": (0.15, 90.0, 1e6),
        "blood": (2.0, 8.0, 700.0),
        "vessel": (2.0, 8.0, 700.0),
        "benign": (rng.uniform(1.3, 1.9), rng.uniform(130, 300), 1e6),
        "lesion": (rng.uniform(1.5, 2.0), rng.uniform(25, 45), rng.uniform(450, 650)),
    }
    if visit:
        shrunk = lumps[0].radii * 0.75**visit
        lumps = (Lump("lesion", lumps[0].centre, shrunk, 0.16, lumps[0].surface), *lumps[1:])
    density = float(rng.uniform(0.15, 0.6))
    return Breast(side, centre, size, density, waves, lumps, vessels, curves)


def grid(
    breast: Breast,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    plane: str = "axial",
    tilt_deg: Sequence[float] = (0, 0),
) -> Geometry:
    """Voxels around the breast, tilted about the left-right and the front-back axis."""
    about_x, about_y = np.radians(tilt_deg)
    turn_x = [
        [1, 0, 0],
        [0, np.cos(about_x), -np.sin(about_x)],
        [0, np.sin(about_x), np.cos(about_x)],
    ]
    turn_y = [
        [np.cos(about_y), 0, np.sin(about_y)],
        [0, 1, 0],
        [-np.sin(about_y), 0, np.cos(about_y)],
    ]
    affine = np.eye(4)
    axes = np.array(turn_x) @ np.array(turn_y) @ np.array(PLANES[plane], float).T
    affine[:3, :3] = axes * np.asarray(spacing_mm)
    middle = breast.centre + np.array([0, breast.size[1] / 2 - 20, 0])
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Geometry(affine, (int(shape[0]), int(shape[1]), int(shape[2])))


def tissues(breast: Breast, geometry: Geometry) -> dict[str, Field]:
    """Share of each tissue in each voxel, (x, y, z) each; what is missing to 1 is air."""
    points = _points(breast, geometry)
    voxel = float(np.abs(np.linalg.det(geometry.affine[:3, :3])) ** (1 / 3))
    layers: dict[str, Field] = {}

    def cover(name: str, share: Field) -> None:
        for key in layers:
            layers[key] = layers[key] * (1 - share)
        layers[name] = layers.get(name, np.float32(0)) + share

    lateral, front = points[..., 0], points[..., 1]
    wall = 8 - 0.0016 * (lateral + 70) ** 2
    scaled = np.stack([lateral, np.maximum(front - wall, 0), points[..., 2]], -1)
    radius = _length(scaled / breast.size.astype(np.float32))
    depth = (1 + 0.03 * breast.waves["outline"].at(points) - radius) * float(breast.size.mean())
    body = _soft(np.maximum(depth, wall - front), voxel / 4)
    cover("fat", body)
    cone = 1.1 * (1 - radius) - 0.6 * (1 - breast.density * 2) - 0.35
    spread = 0.55 * breast.waves["gland"].at(points) + 0.25 * breast.waves["texture"].at(points)
    deep = _soft(np.minimum(depth - 7, front - wall - 5), voxel / 3)
    cover("gland", deep * _soft(spread + cone, 0.12))
    cover("skin", body * _soft(2.5 - depth, 0.8) * _soft(front - wall, 2.0))
    behind = _soft(wall - front, voxel / 4)
    cover("muscle", behind)
    cover("lung", _soft(wall - front - 13, voxel / 4))
    if breast.side < 0:
        middle, half = np.array(((-62, -48, -12), (38, 30, 42)), np.float32)
        heart = _length((points - middle) / half)
        cover("blood", _soft((1 - heart) * 36, voxel / 3) * behind)
    for path in breast.vessels:
        cover("vessel", _soft(1.5 - _distance(points, path), voxel / 3) * body)
    for lump in reversed(breast.lumps):
        cover(lump.kind, lump.inside(points, voxel))
    return layers


def lesion(breast: Breast, geometry: Geometry) -> Array:
    """The truth: uint8 (x, y, z), 1 where the middle of a voxel lies in the lesion."""
    share = breast.lumps[0].inside(_points(breast, geometry), 1.0)
    return (share >= 0.5).astype(np.uint8)


def image(layers: Mapping[str, Field], signal: Mapping[str, float]) -> Field:
    """What a sequence with this `signal` of each tissue sees, without noise: (x, y, z)."""
    return np.asarray(sum(share * signal[name] for name, share in layers.items()), np.float32)


def dynamic(
    breast: Breast, layers: Mapping[str, Field], geometry: Geometry, times_s: Sequence[float]
) -> Field:
    """T1 signal at each time from the start of the first phase, without noise: (x, y, z, t)."""
    uneven = np.clip(1 + 0.18 * breast.waves["texture"].at(_points(breast, geometry)), 0.5, 1.5)
    phases = []
    for time in times_s:
        raised = {}
        for name, curve in breast.curves.items():
            if name in layers:
                raised[name] = layers[name] * uneven * enhancement(curve, time)
        phases.append(image(layers, T1) + image(raised, T1))
    return np.stack(phases, -1)


def enhancement(curve: tuple[float, float, float], time_s: float) -> float:
    """Relative rise of the signal: uptake towards the amplitude, then washout."""
    amplitude, uptake_s, washout_s = curve
    since = max(0.0, time_s - INJECTION_S)
    return float(amplitude * (1 - np.exp(-since / uptake_s)) * np.exp(-since / washout_s))


def scan(breast: Breast, field: Field, geometry: Geometry, rng: np.random.Generator) -> Array:
    """Stored values of a clean `field` (x, y, z[, t]): coil shading, Rician noise, uint16."""
    light = 1 + 0.12 * breast.waves["bias"].at(_points(breast, geometry))
    shaded = field * (light if field.ndim == 3 else light[..., np.newaxis])
    real, imaginary = rng.normal(0, NOISE, (2, *field.shape))
    return np.asarray(np.round(np.hypot(shaded + real, imaginary)), np.uint16)


def _points(breast: Breast, geometry: Geometry) -> Field:
    """Middles of the voxels in the breast's own axes, (x, y, z, 3) in mm."""
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    world = index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return np.asarray((world - breast.centre) * (breast.side, 1, 1), dtype=np.float32)


def _length(vectors: Array) -> Field:
    """Lengths of vectors (..., 3)."""
    return np.asarray(np.sqrt(np.einsum("...i,...i->...", vectors, vectors)), np.float32)


def _distance(points: Field, path: Vector) -> Field:
    """Distance of points (..., 3) from the nearest point of a path (n, 3)."""
    ends = path.astype(np.float32)
    nearest = ((ends**2).sum(-1) - 2 * points @ ends.T).min(-1) + (points**2).sum(-1)
    return np.asarray(np.sqrt(np.maximum(nearest, 0)), np.float32)


def _soft(depth_mm: Field, width_mm: float) -> Field:
    """Share of a voxel inside a surface that lies `depth_mm` away, positive inside."""
    return np.asarray(1 / (1 + np.exp(-np.clip(depth_mm / width_mm, -30, 30))), dtype=np.float32)


def _place(kinds: Sequence[str], size: Vector, rng: np.random.Generator) -> tuple[Lump, ...]:
    """Lumps that lie inside the breast and apart from one another."""
    ranges = {"lesion": (7.0, 13.0, 0.16), "benign": (5.0, 9.0, 0.03), "cyst": (4.0, 7.0, 0.02)}
    lumps: list[Lump] = []
    for kind in kinds:
        low, high, rough = ranges[kind]
        radii = rng.uniform(low, high) * rng.uniform(0.85, 1.18, 3)
        reach = float(radii.max()) * 1.3
        for _ in range(2000):
            centre = rng.uniform((-1, 0, -1), (1, 1, 1)) * size
            free = all(
                np.linalg.norm(centre - one.centre) > reach + one.radii.max() * 1.3 for one in lumps
            )
            inner = np.linalg.norm(centre / (size - reach - 3)) < 1
            if free and inner and centre[1] > reach + 6:
                lumps.append(Lump(kind, centre, radii, rough, Waves.draw(rng, 11.0)))
                break
    return tuple(lumps)


def _vessel(size: Vector, rng: np.random.Generator) -> Vector:
    """Points along a curved vessel from the base towards the nipple, (48, 3)."""
    start = rng.uniform((-0.6, 0, -0.6), (0.6, 0.1, 0.6)) * size
    end = rng.uniform((-0.3, 0.6, -0.3), (0.3, 0.85, 0.3)) * size
    bend = (start + end) / 2 + rng.uniform(-18, 18, 3)
    step = np.linspace(0, 1, 48)[:, np.newaxis]
    return np.asarray((1 - step) ** 2 * start + 2 * step * (1 - step) * bend + step**2 * end)
