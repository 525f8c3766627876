"""
Comparison of contenders in turns, and the rows of the report.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

Step = str
Contender = str
Round = Mapping[Step, Sequence[float]]
"""The measurements of a contender in a round: nanoseconds of each operation, by step."""

Samples = dict[Step, dict[Contender, list[list[float]]]]
"""The rounds of each contender, by step."""


@dataclass(frozen=True)
class Effort:
    """
    The amount of measurements.

    Attributes:
        runs: Runs of the calls of pybtrfs, each on a new filesystem.
        rounds: Turns of each contender in a run.
        operations: Operations in a turn.
        commands: Operations in a turn if each starts a process.
        listed: Subvolumes in a listing.
        files: Files of a large layer.
        layers: Large layers that each contender commits.
        simultaneous: Prepares at once.
        storms: Repetitions of the prepares at once.
        seconds: Duration of sustained prepares and removes.
        aged: Written snapshots on an aged store.
        snapshots: Snapshots on the store that the read-only commands read.
    """

    runs: int
    rounds: int
    operations: int
    commands: int
    listed: int
    files: int
    layers: int
    simultaneous: int
    storms: int
    seconds: float
    aged: int
    snapshots: int


FULL = Effort(
    runs=5,
    rounds=9,
    operations=20,
    commands=5,
    listed=5000,
    files=20000,
    layers=7,
    simultaneous=100,
    storms=5,
    seconds=60,
    aged=4000,
    snapshots=10000,
)
QUICK = replace(FULL, runs=1, rounds=3, commands=3, layers=2, storms=3, seconds=5, aged=1000)


@dataclass(frozen=True)
class Figure:
    """
    Median and extremes of *count* measurements.
    """

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Target:
    """
    The upper limit of a figure's median, or of the *ratio*.
    """

    limit: float
    ratio: bool = False


@dataclass(frozen=True)
class Row:
    """
    A line of the report: the figures of *subject* and of *baseline* for the same work, and their ratio.

    Attributes:
        ratio: The ratio of the medians; its extremes are the extreme ratios of a round, or of a run.
        unit: ``"ns"``, or the counted unit.
        series: The samples during the measurement, if any.
    """

    group: str
    name: str
    subject: str
    figure: Figure
    baseline: str = ""
    baseline_figure: Figure | None = None
    ratio: Figure | None = None
    target: Target | None = None
    unit: str = "ns"
    series: list[float] = field(default_factory=list)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        judged = self.ratio if self.target.ratio else self.figure
        return judged is not None and judged.median <= self.target.limit


def compare(rounds: int, contenders: Mapping[Contender, Callable[[], Round]], *, warm_ups: int = 0) -> Samples:
    """
    Let the contenders take turns, and reverse their order each round.

    Args:
        warm_ups: Further rounds before, whose measurements are dropped.
    """
    samples: Samples = {}
    turns = list(contenders.items())
    for number in range(-warm_ups, rounds):
        for contender, turn in turns:
            measured = turn()
            if number >= 0:
                for step, values in measured.items():
                    samples.setdefault(step, {}).setdefault(contender, []).append(list(values))
        turns.reverse()
    # In the order of the contenders, because rows take the first one for their subject.
    return {
        step: {name: measured[name] for name in contenders if name in measured} for step, measured in samples.items()
    }


def merged(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """
    Return each row of the first of several runs, with the median of the runs' medians, and the range of the runs.
    """
    if len(runs) == 1:
        return list(runs[0])
    same: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in (row for run in runs for row in run):
        same.setdefault((row.group, row.name, row.subject, row.baseline), []).append(row)
    return [
        replace(
            found[0],
            figure=Figure.of([row.figure.median for row in found]),
            baseline_figure=_medians([row.baseline_figure for row in found]),
            ratio=_medians([row.ratio for row in found]),
            series=[value for row in found for value in row.series],
        )
        for found in same.values()
    ]


def _medians(figures: Sequence[Figure | None]) -> Figure | None:
    medians = [figure.median for figure in figures if figure]
    return Figure.of(medians) if medians else None


def rows(group: str, samples: Samples, targets: Mapping[Step, Target] | None = None) -> Iterator[Row]:
    """
    Yield, for each step, a row of the first contender against each other contender, or alone.
    """
    for step, measured in samples.items():
        subject, *others = measured
        target = (targets or {}).get(step)
        for baseline in others:
            yield against(group, step, subject, measured[subject], baseline, measured[baseline], target)
        if not others:
            yield Row(group, step, subject, _all(measured[subject]), target=target)


def against(
    group: str,
    name: str,
    subject: str,
    ours: list[list[float]],
    baseline: str,
    theirs: list[list[float]],
    target: Target | None = None,
    unit: str = "ns",
) -> Row:
    ours_all, theirs_all = _all(ours), _all(theirs)
    ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(ours, theirs, strict=True)]
    ratio = Figure(ours_all.median / theirs_all.median, min(ratios), max(ratios), len(ratios))
    return Row(group, name, subject, ours_all, baseline, theirs_all, ratio, target, unit)


def _all(measured: list[list[float]]) -> Figure:
    return Figure.of([value for values in measured for value in values])


def timed(call: Callable[..., object], *arguments: object) -> float:
    """
    Return the duration of a call in nanoseconds.
    """
    begin = time.perf_counter_ns()
    call(*arguments)
    return time.perf_counter_ns() - begin


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
