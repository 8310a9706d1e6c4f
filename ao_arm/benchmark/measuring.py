"""Builds, verifies and times candidates: all of a case in turn, round after round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import timing
from . import memory
from .candidates import Candidate
from .results import Measurement, Settings
from .subject import Function, Subject
from .verification import Verification, difference_from_reference, relative_difference, verify

#: Of any subject; an output of zeros has 0 dB.
LEAST_DB = 3.0

Report = Callable[[str], None]
Built = tuple[Function, list[torch.nn.Module]]


def measure(
    subjects: Sequence[Subject], candidates: Sequence[Candidate], settings: Settings, timed: bool, report: Report
) -> Iterator[list[Measurement]]:
    """Yields the measurements of each case; ``report`` is told each of them, and each candidate, before it is taken."""
    deadline = time.perf_counter() + (settings.budget_seconds or math.inf)
    for subject in subjects:
        built = _build(subject, candidates, report)
        for case in subject.cases:
            rows = _measure_case(subject, case, candidates, built, settings, timed, deadline, report)
            yield rows
            for row in rows:
                if row.timing and row.timing.median > settings.most_seconds:
                    built[row.candidate] = f"too slow: a call took {row.timing.median:.3g} s in {row.name}"


def steps(subjects: Sequence[Subject], candidates: Sequence[Candidate]) -> int:
    """How many steps ``measure`` reports."""
    return sum(len(candidates) * (1 + len(subject.cases)) + len(subject.cases) for subject in subjects)


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _build(subject: Subject, candidates: Sequence[Candidate], report: Report) -> dict[str, Built | str]:
    """By candidate, what computes the subject or why it cannot be built. Compiled ones share with their eager ones."""
    made: dict[tuple[object, torch.dtype], Built | str] = {}
    found: dict[str, Built | str] = {}
    for candidate in candidates:
        report(f"{subject.title}: building {candidate.name}")
        key = (candidate.make, candidate.dtype)
        if key not in made:
            try:
                made[key] = candidate.obstacle() or subject.build(candidate)
            except Exception as error:  # whatever other libraries raise is a reason to go on without them
                made[key] = _reason(error)
        found[candidate.name] = made[key]
    return found


@torch.inference_mode()
def _measure_case(
    subject: Subject,
    case: str,
    candidates: Sequence[Candidate],
    built: dict[str, Built | str],
    settings: Settings,
    timed: bool,
    deadline: float,
    report: Report,
) -> list[Measurement]:
    # Functions compiled for other cases would only be more guards to check.
    torch._dynamo.reset()
    name = subject.full_name(case)
    expected = subject.expected(case)
    rows: list[Measurement] = []
    plans: dict[str, timing.Task | timing.Timing] = {}
    for candidate in candidates:
        report(f"{name}: verifying {candidate.name}")
        row = Measurement(subject.title, case, name, candidate.name)
        what = built[candidate.name]
        if time.perf_counter() > deadline:
            what = f"the {settings.budget_seconds:g} s of the preset {settings.preset} were over: name --shapes instead"
        try:
            if isinstance(what, str):
                rows.append(replace(row, complaint=what))
                continue
            call, found = _verified(subject, case, candidate, what, expected)
            rows.append(replace(row, **asdict(found), wrong=bool(found.complaint)))
            if timed and not found.complaint:
                plans[candidate.name] = timing.plan(
                    call, settings.sample_seconds, settings.samples, settings.most_seconds
                )
        except Exception as error:  # as above
            rows.append(replace(row, complaint=_reason(error)))
    report(f"{name}: timing")
    tasks = {name: task for name, task in plans.items() if isinstance(task, timing.Task)}
    done = {name: once for name, once in plans.items() if isinstance(once, timing.Timing)}
    if tasks:
        done |= timing.interleaved(tasks, settings.samples, deadline=deadline)
    return [replace(row, timing=done.get(row.candidate)) for row in rows]


def _verified(
    subject: Subject, case: str, candidate: Candidate, built: Built, expected: Tensor
) -> tuple[Callable[[], Tensor], Verification]:
    """The candidate's call in this case, and what is known about its result."""
    eager, layers = built
    argument, difference = subject.input(case, candidate.dtype), None
    if candidate.reference is not None:
        difference = difference_from_reference(layers, candidate.reference, partial(eager, argument))
    least = max(candidate.least_sqnr_db - subject.sqnr_loss_db, LEAST_DB)
    held = memory.weight_bytes(layers)
    if not candidate.backend:
        found = verify(candidate, eager(argument), expected, least, difference)
        return partial(eager, argument), replace(found, weight_bytes=held)
    uncompiled, before = eager(argument), memory.live_tensors()
    function, output = frozen(eager, candidate.name, candidate.backend, argument)
    added = memory.bytes_since(before, but_for=output)
    if candidate.reference is not None and subject.layers_alone:
        difference = relative_difference(output, candidate.reference(layers[0], argument))
    found = verify(candidate, output, expected, least, difference, uncompiled)
    return partial(function, argument), replace(found, weight_bytes=held, added_bytes=added)


def frozen(function: Function, name: str, backend: str, argument: Any) -> tuple[Function, Tensor]:
    """The function compiled for the shapes of an argument, with weights as constants, and what it gives for it."""

    def call(argument: Any) -> Tensor:
        return function(argument)

    # torch keeps compiled graphs by code object. With one for each name no call has to go through others' guards.
    call.__code__ = call.__code__.replace(co_name=name)
    compiled: Function = torch.compile(call, backend=backend, dynamic=False)
    # Dynamo reads the setting as well, which as an option is Inductor's only: weights would stay inputs.
    with torch._inductor.config.patch(freezing=True):
        return compiled, compiled(argument)
