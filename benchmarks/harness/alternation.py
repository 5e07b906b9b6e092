"""Two sides timed in turn, so that what else the machine does meets both.

Timing one side after the other was rejected: the clock rate and the neighbours of a virtual machine drift within
minutes, and the drift then stands in the ratio.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_SETTLED = 0.02

# Does the work once and says how many seconds it took, measured where the work is done.
Side = Callable[[], float]


@dataclass(frozen=True)
class Alternation:
    """The figures of both sides, one of each for every round; medians and half the interquartile range follow."""

    ours_rounds: tuple[float, ...]
    peer_rounds: tuple[float, ...]

    @property
    def ours(self) -> float:
        """Median of our figures."""
        return statistics.median(self.ours_rounds)

    @property
    def peer(self) -> float:
        """Median of the peer's."""
        return statistics.median(self.peer_rounds)

    @property
    def ours_spread(self) -> float:
        """Half the interquartile range of ours."""
        return half_interquartile_range(self.ours_rounds)

    @property
    def peer_spread(self) -> float:
        """The same of the peer's."""
        return half_interquartile_range(self.peer_rounds)


def timed(work: Callable[[], Any]) -> Side:
    """A side that runs in this process, measured by the wall clock."""

    def side() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return side


def alternate(ours: Side, peer: Side, rounds: int, *, most_rounds: int | None = None, warm_up: int = 1) -> Alternation:
    """Time both sides `rounds` times: ours then peer, next peer then ours, and so on.

    A machine with neighbours may need more rounds than a quiet one until a ratio can be told: up to `most_rounds` are
    taken until the median of the rounds' ratios has a standard error of 2 %.

    Args:
        ours: Our side; returns its seconds.
        peer: The other side. It must not compute while ours runs.
        rounds: How many figures each side gives, at least.
        most_rounds: And at most; `rounds` by default.
        warm_up: Runs of each side before that are thrown away.

    Returns:
        Alternation: The medians and the spread, in seconds.

    Raises:
        ValueError: `rounds` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, and at least one is needed for a median")
    for _ in range(warm_up):
        ours()
        peer()
    ours_rounds: list[float] = []
    peer_rounds: list[float] = []
    turns = [(ours, ours_rounds), (peer, peer_rounds)]
    for number in range(max(rounds, most_rounds or rounds)):
        if number >= rounds and _is_settled([a / b for a, b in zip(ours_rounds, peer_rounds, strict=True)]):
            break
        for side, seconds in turns if number % 2 == 0 else reversed(turns):
            seconds.append(side())
    return Alternation(tuple(ours_rounds), tuple(peer_rounds))


def _is_settled(ratios: list[float]) -> bool:
    # Of normal values the median's standard error is 1.25 standard deviations over the square root of their number,
    # and a standard deviation 1.48 halves of the interquartile range.
    error = 1.25 * 1.48 * half_interquartile_range(ratios) / len(ratios) ** 0.5
    return error <= _SETTLED * statistics.median(ratios)


def half_interquartile_range(values: Sequence[float]) -> float:
    """Half the distance between the quartiles; 0.0 for a single value.

    >>> half_interquartile_range([1.0, 2.0, 3.0, 4.0, 5.0])
    1.0
    """
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2
