"""Times of day that run past midnight."""

from __future__ import annotations

from collections.abc import Sequence

DAY_US = 86_400_000_000
HALF_DAY_US = DAY_US // 2


def past_midnight(times_us: Sequence[int]) -> list[int]:
    """The same moments with a day added to those that lie behind midnight.

    Nothing that is compared here lasts half a day: a time that falls below the latest one by more
    than 12 h belongs to the next day.

    Args:
        times_us: Microseconds, without a date or all of one date.
    """
    latest = max(times_us, default=0)
    return [us + DAY_US if latest - us > HALF_DAY_US else us for us in times_us]
