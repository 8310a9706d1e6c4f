"""Benchmark results as dataclasses, and as JSON that other versions can check before they read it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..system import System
from ..timing import Timing

#: Changes when the meaning of a field does.
FORMAT = 1

#: Settings of other libraries that change what is measured.
_VARIABLES = ("AO_ARM_KERNEL", "DNNL_DEFAULT_FPMATH_MODE", "OMP_NUM_THREADS", "OMP_PROC_BIND", "LRU_CACHE_CAPACITY")


@dataclass(frozen=True)
class Measurement:
    """What was found out about one candidate in one case.

    Attributes:
        subject, case: the layer or model, and its input, as tables name them.
        name: of the case among all of them: ``m x k x n`` for layers.
        candidate: its name.
        timing: of one call, or None if it was not timed.
        complaint: why it could not run, or what is wrong with its result; "" if nothing is.
        wrong: whether it ran and gave a wrong result.
        sqnr_db: against fp32; None if it did not run or equals fp32.
        reference_difference: from its own reference, relative to the largest value; 0 means equal bits.
        weight_bytes: of its layers' parameters and buffers; None if it did not run or has none.
        added_bytes: of the tensors that compiling it made and keeps; None if it is not compiled.
    """

    subject: str
    case: str
    name: str
    candidate: str
    timing: Timing | None = None
    complaint: str = ""
    wrong: bool = False
    sqnr_db: float | None = None
    reference_difference: float | None = None
    weight_bytes: int | None = None
    added_bytes: int | None = None


@dataclass(frozen=True)
class Settings:
    """How it was measured.

    Attributes:
        preset: whose settings these are.
        samples: of each candidate in each case.
        sample_seconds: that calls are repeated for to make a sample.
        most_seconds: for all samples of a candidate in a case. If one call takes longer it is the only one, and the
            candidate is left out of the subject's other cases.
        budget_seconds: for everything; what has not begun by then is left out. None: no limit.
    """

    preset: str
    samples: int
    sample_seconds: float
    most_seconds: float
    budget_seconds: float | None = None


@dataclass(frozen=True)
class Results:
    """All measurements, with what they were measured on."""

    system: System
    environment: dict[str, str]
    settings: Settings
    schemes: dict[str, str]
    measurements: tuple[Measurement, ...]
    format: int = FORMAT

    def medians(self) -> dict[tuple[str, str], float]:
        """Seconds of a call by case name and candidate, of what was timed."""
        return {(row.name, row.candidate): row.timing.median for row in self.measurements if row.timing}

    def write(self, file: Path) -> None:
        """As JSON."""
        plain = dataclasses.asdict(self)
        # JSON has no infinity and no NaN.
        for row in plain["measurements"]:
            for name in ("sqnr_db", "reference_difference"):
                if row[name] is not None and not math.isfinite(row[name]):
                    row[name] = None
        file.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")


def read(file: Path) -> Results:
    """Results from a file that ``Results.write`` wrote.

    Raises:
        ValueError: if the file holds anything else.
    """
    try:
        plain = json.loads(file.read_text())
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}: it is not from this version of `ao_arm bench --json`")
        return _from_plain(plain)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def _from_plain(plain: dict[str, Any]) -> Results:
    rows = plain["measurements"]
    system = {**plain["system"], "features": tuple(plain["system"]["features"])}
    return Results(
        System(**system),
        plain["environment"],
        Settings(**plain["settings"]),
        plain["schemes"],
        tuple(Measurement(**{**row, "timing": Timing(**row["timing"]) if row["timing"] else None}) for row in rows),
    )


def environment() -> dict[str, str]:
    """The variables, among those that matter, that are set."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}
