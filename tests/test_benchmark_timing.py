"""How the benchmark times: in turn, as long as it may."""

import dataclasses

import pytest
from benchmarked import EAGER, SETTINGS, row_of

from ao_arm import timing
from ao_arm.benchmark import layers, measuring

pytestmark = pytest.mark.x86


def test_all_are_timed_in_turn() -> None:
    order: list[str] = []
    tasks = {name: timing.Task(lambda name=name: order.append(name), calls=2) for name in "ab"}
    tasks["c"] = timing.Task(lambda: order.append("c"), most_samples=1)
    found = timing.interleaved(tasks, rounds=2)
    assert "".join(order) == "aaabbbcc" + "aaabbb"
    assert [found[name].samples for name in "abc"] == [2, 2, 1]
    assert found["a"].low <= found["a"].median <= found["a"].high
    assert found["c"].spread == 0


def test_slow_calls_are_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def call(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    quick = timing.plan(lambda: call(0.125), sample_seconds=1.0, samples=7, most_seconds=1000.0)
    assert isinstance(quick, timing.Task) and (quick.calls, quick.most_samples) == (8, 7)
    slow = timing.plan(lambda: call(1.0), sample_seconds=1.0, samples=7, most_seconds=10.0)
    assert isinstance(slow, timing.Task) and (slow.calls, slow.most_samples) == (1, 5)
    once = timing.plan(lambda: call(16.0), sample_seconds=1.0, samples=7, most_seconds=10.0)
    assert once == timing.Timing(16.0, 16.0, 16.0, samples=1)


def test_what_is_too_slow_is_left_out_of_larger_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    once = timing.Timing(5.0, 5.0, 5.0, samples=1)
    monkeypatch.setattr(timing, "plan", lambda *args: once)
    subjects = layers.subjects(layers.shapes("1x32x32,2x32x32"))
    settings = dataclasses.replace(SETTINGS, most_seconds=1.0)
    first, second = measuring.measure(subjects, [row_of("bf16")], settings, True, lambda step: None)
    assert first[0].timing == once
    assert (second[0].timing, second[0].complaint) == (None, "too slow: a call took 5 s in 1x32x32")


def test_after_the_budget_nothing_begins() -> None:
    settings = dataclasses.replace(SETTINGS, budget_seconds=1e-9)
    subjects = layers.subjects(layers.shapes("1x32x32,1x32x48"))
    found = [row for rows in measuring.measure(subjects, EAGER[:2], settings, True, lambda step: None) for row in rows]
    assert len(found) == 4
    for row in found:
        assert row.timing is None and not row.wrong
        assert row.complaint == "the 1e-09 s of the preset quick were over: name --shapes instead"


def test_after_a_deadline_no_round_begins() -> None:
    calls: list[int] = []
    tasks = {"a": timing.Task(lambda: calls.append(1))}
    assert timing.interleaved(tasks, rounds=5, deadline=0.0)["a"].samples == 1
    assert len(calls) == 2
