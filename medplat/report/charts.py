"""Small charts as inline SVG: a curve over phases, the ladder of slice positions.

Colours come from the page's style sheet; only numbers enter the markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from markupsafe import Markup


def curve(values: Sequence[float], times: Sequence[float] | None = None) -> Markup:
    """A small line chart as inline SVG.

    Args:
        values: One for each phase.
        times: Seconds; None: the phases' numbers.
    """
    at = list(times) if times is not None else [float(i) for i in range(len(values))]
    if len(values) < 2 or at[-1] <= at[0] or not np.isfinite(values).all():
        return Markup("")
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    points = [
        (42 + 108 * (x - at[0]) / (at[-1] - at[0]), 44 - 36 * (y - low) / span)
        for x, y in zip(at, values, strict=True)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>' for x, y in points[:60])
    unit = "s" if times is not None else "phase"
    return Markup(
        '<svg class="curve" viewBox="0 0 160 62" role="img" '
        f'aria-label="mean signal over {len(values)} phases, from {low:.4g} to {high:.4g}">'
        f'<polyline points="{line}"/>{dots}'
        f'<text x="39" y="11" text-anchor="end">{_short(high)}</text>'
        f'<text x="39" y="47" text-anchor="end">{_short(low)}</text>'
        f'<text x="42" y="58">{at[0]:.0f}</text>'
        f'<text x="150" y="58" text-anchor="end">{at[-1]:.0f} {unit}</text></svg>'
    )


def _short(value: float) -> str:
    """Seven characters at most; whole numbers up to 99,999 in full."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.3g}"


def ladder(positions_mm: Sequence[float]) -> Markup:
    """Slice positions along the normal as ticks; wide gaps and incomplete positions are marked.

    Args:
        positions_mm: One for each image, in any order.
    """
    held = Counter(round(one, 2) for one in positions_mm if np.isfinite(one))
    places = sorted(held)
    if len(places) < 2:
        return Markup("")
    usual = float(np.median(np.diff(places)))
    most = max(held.values())
    span = places[-1] - places[0]

    def x(place: float) -> float:
        return 6 + 288 * (place - places[0]) / span

    wide = [
        f'<rect class="gap" x="{x(a):.1f}" y="7" width="{x(b) - x(a):.1f}" height="16"/>'
        for a, b in pairwise(places)
        if b - a > 1.25 * usual
    ]
    short = [
        f'<circle class="gap" cx="{x(place):.1f}" cy="15" r="5"/>'
        for place in places
        if held[place] < most
    ]
    ticks = "".join(f"M{x(place):.1f} 5v20" for place in places)
    return Markup(
        '<svg class="ladder" viewBox="0 0 300 42" role="img" '
        f'aria-label="{len(places)} slice positions over {span:.1f} mm, {len(wide)} wide gaps, '
        f'{len(short)} with fewer images than the others">'
        f'{"".join(wide)}<path d="{ticks}"/>{"".join(short)}'
        f'<text x="6" y="38">{places[0]:.1f}</text>'
        f'<text x="150" y="38" text-anchor="middle">{len(places)} positions, '
        f"usual step {usual:.2f} mm</text>"
        f'<text x="294" y="38" text-anchor="end">{places[-1]:.1f} mm</text></svg>'
    )
