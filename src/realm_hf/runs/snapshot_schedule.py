"""At which optimizer steps a run hands a snapshot over to be indexed: every so many, or by a schedule.

    0-1000:250,1000-:1000

reads: up to step 1000 every 250 steps, from there on every 1000. A young retriever changes faster than an old one, and
an index costs the same at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

__all__ = ["SnapshotSchedule"]

_PART = re.compile(r"(\d+)-(\d*):(\d+)")


@dataclass(frozen=True)
class SnapshotSchedule:
    """
    Intervals, each from a step on.

    Args:
        starts (`tuple[int, ...]`): The step after which each part begins, ascending from 0.
        intervals (`tuple[int, ...]`): A snapshot every so many steps of the part, counted from its start, and one at
            its end.
    """

    starts: tuple[int, ...]
    intervals: tuple[int, ...]

    @classmethod
    def every(cls, steps: int) -> Self:
        """A snapshot every so many steps, from the first to the last.

        Args:
            steps (`int`): At least 1.
        """
        return cls((0,), (steps,))

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read a schedule: parts FROM-TO:STEPS with commas between, the last one without TO.

        Args:
            text (`str`): For example "0-1000:250,1000-:1000".

        Raises:
            ValueError: It is no schedule; the message says which part is at fault.
        """

        def wrong(what: str) -> ValueError:
            return ValueError(
                f"refresh_schedule is {text!r}: {what}. Write parts FROM-TO:STEPS, each from where the last one ends, "
                "such as 0-1000:250,1000-:1000."
            )

        starts, intervals, end = [], [], "0"
        for part in text.split(","):
            found = _PART.fullmatch(part.strip())
            if found is None:
                raise wrong(f"{part.strip()!r} is no such part")
            start, to, steps = found.groups()
            if end == "":
                raise wrong(f"{part.strip()!r} follows a part without an end")
            if int(start) != int(end):
                raise wrong(f"{part.strip()!r} must begin at {int(end)}")
            if to and int(to) <= int(start):
                raise wrong(f"{part.strip()!r} ends before it begins")
            if int(steps) < 1:
                raise wrong(f"the interval of {part.strip()!r} must be at least 1 step")
            starts.append(int(start))
            intervals.append(int(steps))
            end = to
        if end:
            raise wrong(f"it ends at step {int(end)}; the last part has no end")
        return cls(tuple(starts), tuple(intervals))

    def __str__(self) -> str:
        if len(self.starts) == 1:
            return f"every {self.intervals[0]} steps"
        return ",".join(f"{start}-{'' if end is None else end}:{interval}" for start, end, interval in self._parts())

    @property
    def shortest(self) -> int:
        """The shortest interval, in steps."""
        return min(self.intervals)

    @property
    def longest(self) -> int:
        """The longest interval, in steps: no two snapshots are further apart."""
        return max(self.intervals)

    def is_due(self, step: int) -> bool:
        """Whether a snapshot is taken after optimizer step `step`, counted from 1."""
        return any(
            (step - start) % interval == 0 or step == end
            for start, end, interval in self._parts()
            if start < step and (end is None or step <= end)
        )

    def parts(self, steps: int) -> list[tuple[int, int, int]]:
        """
        The parts of a run.

        Args:
            steps (`int`): Its length.

        Returns:
            `list` of `(length, interval, snapshots)`: the steps of each part that is reached, its interval, and the
            snapshots that are taken in it.
        """
        found = []
        for start, end, interval in self._parts():
            length = (steps if end is None else min(end, steps)) - start
            if length > 0:
                at_the_end = start + length == end and length % interval != 0
                found.append((length, interval, length // interval + at_the_end))
        return found

    def _parts(self) -> Iterator[tuple[int, int | None, int]]:
        """`(start, end, interval)` of each part; the last one has no end."""
        ends = [*(end for _, end in pairwise(self.starts)), None]
        yield from zip(self.starts, ends, self.intervals, strict=True)
