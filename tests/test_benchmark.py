"""The benchmark: wrong candidates are found, figures come with what they mean, and files of them can be compared."""

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ao_arm import timing
from ao_arm.__main__ import main
from ao_arm.benchmark import candidates, command, comparison, layers, measuring, plot, results, tables
from ao_arm.benchmark.candidates import BASELINE, CANDIDATES, Candidate
from ao_arm.benchmark.results import Measurement, Results
from ao_arm.benchmark.verification import relative_difference
from ao_arm.demo.encoder import MODEL_PACKAGE
from ao_arm.system import EMULATED_CPU, current_system

OURS = "ao_arm int8 dynamic"
SETTINGS = results.Settings("quick", samples=2, sample_seconds=1e-4, most_seconds=1.0)
EAGER = tuple(row for row in CANDIDATES if not row.compiled)

needs_times = pytest.mark.x86  # emulated CPUs give none


@pytest.fixture(autouse=True)
def _nothing_stays_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def row_of(name: str) -> Candidate:
    return next(row for row in CANDIDATES if row.name == name)


# Not on other emulated CPUs: on one that has everything, torch's own engines end the process (illegal instruction).
pytestmark = pytest.mark.one_cpu


def measured(*rows: Candidate, shape: str = "3x64x40", timed: bool = False) -> dict[str, Measurement]:
    subjects = layers.subjects(layers.shapes(shape))
    found = [row for case in measuring.measure(subjects, rows, SETTINGS, timed, lambda step: None) for row in case]
    return {row.candidate: row for row in found}


# --- candidates and their verification ---


@pytest.mark.one_cpu
def test_names_are_unique_and_the_baseline_comes_first() -> None:
    names = [row.name for row in CANDIDATES]
    assert len(set(names)) == len(names)
    assert names[0] == BASELINE


@pytest.mark.parametrize("shape", ["1x128x40", "5x128x256"])
def test_every_candidate_is_right_or_says_why_it_does_not_run(shape: str) -> None:
    found = measured(*EAGER, shape=shape)
    assert list(found) == [row.name for row in EAGER]
    for candidate in EAGER:
        row = found[candidate.name]
        assert not row.wrong, f"{row.candidate}: {row.complaint}"
        assert (row.sqnr_db is None) == bool(row.complaint)
    for name in (BASELINE, "bf16", OURS):
        assert not found[name].complaint
    assert found[OURS].reference_difference == 0.0


@pytest.mark.x86
def test_compiled_candidates_are_right() -> None:
    rows = [row for row in CANDIDATES if row.compiled]
    found = measured(*rows, shape="3x128x40")
    for row in rows:
        assert not found[row.name].wrong
        # Others may not compile: torchao 0.16's static layers do not.
        assert not found[row.name].complaint or not row.name.startswith((BASELINE, "ao_arm"))
    assert found[f"{OURS} compiled"].reference_difference == 0.0


class Wrong(torch.nn.Module):
    """A layer with some error."""

    def __init__(self, layer: torch.nn.Module, error: float) -> None:
        super().__init__()
        self.layer, self.error = layer, error

    @property
    def weight(self) -> torch.Tensor:
        return self.layer.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = self.layer(input).clone()
        output[0, 0] += self.error
        return output


@pytest.mark.one_cpu
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.x86)], ids="compiled={}".format)
@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (1e-5, "it differs from its reference by"),
        (50.0, "its SQNR to fp32 is"),
        (float("nan"), "its SQNR to fp32 is nan dB, and at least 33 dB are expected"),
        (float("inf"), "its SQNR to fp32 is"),
    ],
)
def test_a_wrong_candidate_is_found_and_not_timed(error: float, complaint: str, compiled: bool) -> None:
    ours = row_of(OURS)
    wrong = dataclasses.replace(
        ours, name="wrong", make=lambda *args: Wrong(ours.make(*args), error), compiled=compiled
    )
    found = measured(ours, wrong, timed=True)
    assert not found[OURS].complaint and found[OURS].timing
    assert found["wrong"].wrong
    assert complaint in found["wrong"].complaint
    assert found["wrong"].timing is None


@pytest.mark.one_cpu
def test_a_tolerance_is_relative_to_the_largest_value() -> None:
    expected = torch.tensor([-4.0, 1.0])
    assert relative_difference(expected, expected.clone()) == 0.0
    assert relative_difference(torch.tensor([-4.0, 1.5]), expected) == 0.125
    near = dataclasses.replace(row_of(OURS), name="near", tolerance=1e-3)
    near = dataclasses.replace(near, make=lambda *args: Wrong(row_of(OURS).make(*args), 1e-5))
    found = measured(near)["near"]
    assert not found.complaint
    assert found.reference_difference is not None and 0 < found.reference_difference < 1e-3


@pytest.mark.one_cpu
def test_a_wrong_shape_is_found() -> None:
    broken = dataclasses.replace(row_of("bf16"), name="broken", make=lambda *_: torch.nn.Flatten(0))
    found = measured(broken)["broken"]
    assert found.wrong
    assert found.complaint == "its output has the shape (192,) instead of (3, 40)"


@pytest.mark.one_cpu
def test_what_cannot_be_built_or_run_is_left_out_with_the_reason() -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("no such engine\nand a long trace")

    bf16 = row_of("bf16")
    rows = (
        dataclasses.replace(bf16, name="here not", obstacle=lambda: "it needs another CPU"),
        dataclasses.replace(bf16, name="build", make=fails),
        dataclasses.replace(bf16, name="run", make=lambda linear, _: torch.nn.Linear(3, 3)),
    )
    found = measured(*rows)
    assert found["here not"].complaint == "it needs another CPU"
    assert found["build"].complaint == "no such engine"
    assert found["run"].complaint
    assert not any(row.wrong for row in found.values())


@pytest.mark.one_cpu
def test_a_group_size_that_does_not_fit_is_a_reason() -> None:
    assert measured(row_of("torch int4 g128"))["torch int4 g128"].complaint == (
        "k = 64 is not a multiple of the group size 128"
    )


# --- timing ---


@needs_times
def test_all_are_timed_in_turn() -> None:
    order: list[str] = []
    tasks = {name: timing.Task(lambda name=name: order.append(name), calls=2) for name in "ab"}
    tasks["c"] = timing.Task(lambda: order.append("c"), most_samples=1)
    found = timing.interleaved(tasks, rounds=2)
    assert "".join(order) == "aaabbbcc" + "aaabbb"
    assert [found[name].samples for name in "abc"] == [2, 2, 1]
    assert found["a"].low <= found["a"].median <= found["a"].high
    assert found["c"].spread == 0


@needs_times
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


@needs_times
def test_what_is_too_slow_is_left_out_of_larger_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    once = timing.Timing(5.0, 5.0, 5.0, samples=1)
    monkeypatch.setattr(timing, "plan", lambda *args: once)
    subjects = layers.subjects(layers.shapes("1x32x32,2x32x32"))
    first, second = measuring.measure(subjects, [row_of("bf16")], SETTINGS, True, lambda step: None)
    assert first[0].timing == once
    assert (second[0].timing, second[0].complaint) == (None, "too slow: a call took 5 s in 1x32x32")


@needs_times
def test_after_the_budget_nothing_begins() -> None:
    settings = dataclasses.replace(SETTINGS, budget_seconds=1e-9)
    subjects = layers.subjects(layers.shapes("1x32x32,1x32x48"))
    found = [row for rows in measuring.measure(subjects, EAGER[:2], settings, True, lambda step: None) for row in rows]
    assert len(found) == 4
    for row in found:
        assert row.timing is None and not row.wrong
        assert row.complaint == "the 1e-09 s of the preset quick were over: name --shapes instead"


@needs_times
def test_after_a_deadline_no_round_begins() -> None:
    calls: list[int] = []
    tasks = {"a": timing.Task(lambda: calls.append(1))}
    assert timing.interleaved(tasks, rounds=5, deadline=0.0)["a"].samples == 1
    assert len(calls) == 2


# --- the command ---


def bench(*options: str) -> int:
    return main(["bench", "--samples", "2", "--only", f"bf16,{OURS}", *options])


def test_the_command_verifies_and_says_what_its_figures_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    assert bench("--shapes", "3x64x40,1x64x40,2x40x64", "--json", str(file)) == 0
    output = capsys.readouterr().out
    found = results.read(file)
    assert [row.name for row in found.measurements[::3]] == ["3x64x40", "1x64x40", "2x40x64"]
    assert str(current_system()) in output
    emulated = bool(current_system().emulated)
    assert ("emulated ones would say nothing" in output) == emulated
    assert ("64 -> 40: microseconds" in output) == (not emulated)
    assert len(found.medians()) == (0 if emulated else 9)
    assert {row.reference_difference for row in found.measurements if row.candidate == OURS} == {0.0}


@pytest.mark.one_cpu
def test_on_emulated_cpus_nothing_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(EMULATED_CPU, "neoverse-v1")
    file = tmp_path / "results.json"
    assert bench("--shapes", "1x32x32", "--json", str(file)) == 0
    output = capsys.readouterr().out
    assert "No times: emulated ones would say nothing about an Arm CPU." in output
    assert "microseconds" not in output
    assert results.read(file).medians() == {}
    with pytest.raises(SystemExit, match="--plot needs times"):
        bench("--shapes", "1x32x32", "--plot", str(tmp_path / "results.png"))


@pytest.mark.one_cpu
def test_a_wrong_result_of_ours_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = dataclasses.replace(row_of(OURS), least_sqnr_db=99)
    monkeypatch.setattr(candidates, "CANDIDATES", (row_of(BASELINE), strict))
    assert main(["bench", "--shapes", "1x32x32", "--only", "ao_arm*", "--no-timing"]) == 1
    assert f"WRONG, not timed: {OURS}: its SQNR to fp32 is" in capsys.readouterr().out


@pytest.mark.one_cpu
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shapes", "64x768"), "'64x768' is not a shape: write m x k x n"),
        (("--shapes", "1x0x3"), "'1x0x3' is not a shape"),
        (("--shapes", "1x2x3,"), "'' is not a shape"),
        (("--only", "none"), "no candidate is called 'none'; there are: fp32, "),
        (("--threads", "0"), "it must be at least 1, not 0"),
        (("--preset", "some"), "invalid choice: 'some'"),
        (("--json", "/no/such/folder/file"), "there is no folder /no/such/folder"),
        (("--model", "/no/such/folder"), "/no/such/folder is neither minilm nor a folder with a config.json"),
        (("--model", "minilm", "--shapes", "1x2x3"), "not allowed with argument"),
    ],
)
def test_wrong_options(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.one_cpu
def test_a_baseline_that_is_not_run_is_one_line() -> None:
    with pytest.raises(SystemExit, match="--baseline must be one of the candidates that are run, not 'int3'"):
        main(["bench", "--baseline", "int3"])


@pytest.mark.one_cpu
def test_presets_hold_what_they_say() -> None:
    assert len(layers.FULL) == 8 * 5 * 5
    assert set(command.PRESETS) == set(command._SHAPES) == {"quick", "full"}
    assert layers.shapes(" 64x768x3072,64x768x3072,1x2x3") == ((64, 768, 3072), (1, 2, 3))
    with pytest.raises(argparse.ArgumentTypeError):
        layers.shapes("axbxc")


# --- files and what is made of them ---


def some_results(factor: float = 1.0, **system: Any) -> Results:
    """Two candidates in two cases, and one that did not run."""
    rows = [
        Measurement(
            "32 -> 48", f"m = {m}", f"{m}x32x48", name,
            timing.Timing(factor * median, 0.9 * factor * median, 1.1 * factor * median, samples=5, calls=3),
            sqnr_db=sqnr, reference_difference=difference,
        )
        for m in (1, 8)
        for name, median, sqnr, difference in ((BASELINE, 4e-5, None, None), (OURS, m * 1e-5, 40.5, 0.0))
    ]  # fmt: skip
    rows.append(Measurement("32 -> 48", "m = 1", "1x32x48", "bf16", complaint="it needs another CPU"))
    schemes = {row.name: row.scheme for row in CANDIDATES}
    return Results(
        dataclasses.replace(current_system(), **system), {"OMP_NUM_THREADS": "2"}, SETTINGS, schemes, tuple(rows)
    )


@pytest.mark.one_cpu
def test_results_survive_json(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    written = some_results()
    written.write(file)
    assert results.read(file) == written
    infinite = dataclasses.replace(written.measurements[0], sqnr_db=float("inf"))
    dataclasses.replace(written, measurements=(infinite,)).write(file)
    assert results.read(file).measurements[0].sqnr_db is None


@pytest.mark.one_cpu
def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    some_results().write(file)
    plain = json.loads(file.read_text())
    for text, reason in (
        ("{", "cannot be read"),
        ("[]", "its format is not 1"),
        (json.dumps({**plain, "format": 2}), "its format is not 1"),
        (json.dumps({"format": 1}), "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=reason):
            results.read(file)
    with pytest.raises(SystemExit, match=r"ao_arm bench: .*none\.json cannot be read"):
        main(["bench", "--compare", str(tmp_path / "none.json"), str(file)])


@pytest.mark.one_cpu
def test_tables_show_ratios_spreads_and_reasons() -> None:
    text = "\n".join(tables.lines(some_results(), BASELINE))
    assert "10.0 ±1.0 ( 4.00x)" in text
    assert "80.0 ±8.0 ( 0.50x)" in text
    assert tables.ratio(0.00213) == "0.002"
    assert "not run: bf16 (1x32x48): it needs another CPU" in text
    assert "Set: OMP_NUM_THREADS=2." in text


@pytest.mark.one_cpu
def test_comparing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    some_results().write(before)
    some_results(0.5).write(after)
    assert main(["bench", "--compare", str(before), str(after)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "32 -> 48: times as fast in b.json as in a.json" in shown.out
    assert shown.out.count("2.00x") == 5
    assert "Geometric mean over 4 pairs: 2.00x." in shown.out

    some_results(threads=99, torch="0.1", features=("x", "y")).write(after)
    assert main(["bench", "--compare", str(before), str(after)]) == 0
    shown = capsys.readouterr()
    assert f"warning: threads differs: {current_system().threads} and 99\n" in shown.err
    assert f"warning: torch differs: {torch.__version__} and 0.1\n" in shown.err
    assert "and x+y\n" in shown.err
    assert shown.err.count("\n") == 3


@pytest.mark.one_cpu
def test_comparing_needs_something_in_common(tmp_path: Path) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    some_results().write(before)
    dataclasses.replace(some_results(), measurements=()).write(after)
    with pytest.raises(ValueError, match="have no case in common"):
        list(comparison.lines(before, after))


@needs_times
def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "results.png"
    assert bench("--shapes", "1x32x32,2x32x32,1x32x48", "--plot", str(file)) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"ao_arm bench: .*results\.xyz"):
        bench("--shapes", "1x32x32", "--plot", str(tmp_path / "results.xyz"))


@pytest.mark.one_cpu
def test_a_plot_says_what_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "results.svg"
    plot.draw(some_results(cpu="Some CPU", features=("x", "y"), threads=3), BASELINE, file)
    drawn = file.read_text()
    for text in (
        "Measured on Some CPU (x, y), 3 threads",
        "times as fast as fp32: right is faster",
        "m = 1 (fp32: 40.0 µs)",
        BASELINE,
        OURS,
    ):
        assert f"<!-- {text} -->" in drawn
    assert "bf16" not in drawn


@needs_times
def test_a_plot_without_matplotlib_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = r"ao_arm bench: not installed: matplotlib\. Run: pip install 'ao_arm\[bench\]'"
    with pytest.raises(SystemExit, match=message):
        bench("--plot", str(tmp_path / "results.png"))


# --- models ---


@pytest.mark.x86
def test_a_whole_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if any(importlib.util.find_spec(package) is None for package in ("transformers", MODEL_PACKAGE)):
        pytest.skip("pip install 'ao_arm[demo]'")
    file = tmp_path / "results.json"
    assert bench("--model", "minilm", "--no-timing", "--json", str(file)) == 0
    found = results.read(file)
    ours = [row for row in found.measurements if row.candidate == OURS]
    assert len(ours) == 2
    for row in ours:
        assert row.sqnr_db is not None and row.sqnr_db > 15
        assert row.reference_difference == 0.0
    assert not any(row.complaint for row in found.measurements)
    assert "all-MiniLM-L6-v2, 1 x 15 tokens" in {row.name for row in found.measurements}
