"""The records of a run: what is in them, JSON lines, and which differences between two runs are more than noise.

Measures nothing and shows nothing; a file is read without the machine that wrote it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

YARDSTICK = "eager"  # the contender that a change of fusedact does not change


@dataclass(frozen=True)
class Result:
    """One contender in one cell. None: not measured there."""

    family: str
    case: str
    shape: str
    dtype: str
    mode: str
    output: str
    threads: int
    device: str
    provider: str
    median_us: float
    low_us: float  # lower quartile
    high_us: float  # upper quartile
    rounds: int
    calls: int  # per round
    page_faults: float  # per call
    moved_bytes: int | None = None  # at least, by whoever computes this
    gb_per_s: float | None = None
    of_ceiling: float | None = None  # of what a copy moves per second, measured in the same turns
    peak_bytes: int | None = None  # of tensors during a call, results among them
    kept_bytes: int | None = None  # for backward

    @property
    def cell(self) -> tuple[Any, ...]:
        """What the result is of, but for who computed it."""
        return (
            self.family, self.case, self.shape, self.dtype, self.mode, self.output, self.threads, self.device,
        )  # fmt: skip

    @property
    def words(self) -> tuple[str, ...]:
        """What a filter's words are compared with."""
        return self.family, self.case, self.shape, self.dtype, self.mode, self.output, f"t{self.threads}"


@dataclass(frozen=True)
class Wrong:
    """A contender whose result was not the truth, or that raised; it was not timed."""

    cell: str
    provider: str
    message: str
    fault: bool  # False for another library that says that it cannot: no reason to fail


@dataclass
class Run:
    """All of one run."""

    about: dict[str, Any]
    results: list[Result] = dataclasses.field(default_factory=list)
    wrong: list[Wrong] = dataclasses.field(default_factory=list)

    def write(self, path: Path) -> None:
        """As JSON lines: what the figures depend on, then a line each."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            put(file, "environment", self.about)
            for result in self.results:
                put(file, "result", result)
            for wrong in self.wrong:
                put(file, "wrong", wrong)


def put(file: IO[str], kind: str, record: Any) -> None:
    """Append one record, and see that it is there: a run may be interrupted."""
    facts = record if isinstance(record, dict) else dataclasses.asdict(record)
    file.write(json.dumps({"kind": kind, **facts}) + "\n")
    file.flush()


def read(path: Path) -> Run:
    """The run that `path` holds.

    Raises:
        ValueError: it is no file of results; the message says which line is not.
    """
    run = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            kind = record.pop("kind")
            if kind == "environment":
                run = Run(record)
            elif run is not None:
                {"result": run.results, "wrong": run.wrong}[kind].append(  # type: ignore[attr-defined]
                    (Result if kind == "result" else Wrong)(**record)
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: no record of `fusedact bench --save` ({error})") from None
    if run is None:
        raise ValueError(f"{path} has no line that tells the environment: it is no file of `bench --save`")
    return run


@dataclass(frozen=True)
class Change:
    """One contender in one cell, then and now."""

    now: Result
    ratio: float  # time now / time then
    noise: float  # how far from 1 the ratio must be, as a factor

    @property
    def beyond_noise(self) -> bool:
        return abs(math.log(self.ratio)) > math.log(self.noise)


LEAST_NOISE = 1.03  # a factor; clocks, alignment and the mood of a core are good for as much


def margin(result: Result) -> float:
    """Half the notch of McGill, Tukey and Larsen (1978), relative: two medians whose notches do not touch differ, with
    some 95 % confidence. Tight quartiles of few rounds are luck as often as not; hence LEAST_NOISE."""
    return 1.57 * (result.high_us - result.low_us) / math.sqrt(result.rounds) / result.median_us


def changes(now: Run, then: Run) -> Iterator[Change]:
    """Every contender that both runs have, beside its noise.

    A ratio is noise as long as it is within both medians' notches, within 3 %, and within what happened to eager
    PyTorch in that cell: if torch, which nobody changed, takes a tenth longer, the machine does.
    """
    before = {(r.cell, r.provider): r for r in then.results}
    yard = {r.cell: r for r in now.results if r.provider == YARDSTICK}
    for result in now.results:
        old = before.get((result.cell, result.provider))
        if old is None:
            continue
        notches = 1 + margin(result) + margin(old)
        drift = 1.0
        reference, earlier = yard.get(result.cell), before.get((result.cell, YARDSTICK))
        if result.provider != YARDSTICK and reference and earlier:
            drift = reference.median_us / earlier.median_us
        noise = max(LEAST_NOISE, notches, drift, 1 / drift)
        yield Change(result, result.median_us / old.median_us, noise)
