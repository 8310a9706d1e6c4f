"""Files of the benchmark's results, and what is made of them: tables, comparisons, plots."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarked import OURS, bench, some_results

from ao_arm.__main__ import main
from ao_arm.benchmark import comparison, plot, results, tables
from ao_arm.benchmark.candidates import BASELINE
from ao_arm.system import current_system

pytestmark = pytest.mark.x86


def test_results_survive_json(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    written = some_results()
    written.write(file)
    assert results.read(file) == written
    infinite = dataclasses.replace(written.measurements[0], sqnr_db=float("inf"))
    dataclasses.replace(written, measurements=(infinite,)).write(file)
    assert results.read(file).measurements[0].sqnr_db is None


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


def test_tables_show_ratios_spreads_and_reasons() -> None:
    text = "\n".join(tables.lines(some_results(), BASELINE))
    assert "10.0 ±1.0 ( 4.00x)" in text
    assert "80.0 ±8.0 ( 0.50x)" in text
    assert tables.ratio(0.00213) == "0.002"
    assert "not run: bf16 (1x32x48): it needs another CPU" in text
    assert "Set: OMP_NUM_THREADS=2." in text
    assert "memory: " not in text  # nothing was compiled


def test_a_table_of_memory() -> None:
    rows = [
        dataclasses.replace(row, weight_bytes=2_000_000, added_bytes=added)
        for row, added in zip(some_results().measurements, (None, 500_000, None, 1_250_000), strict=False)
    ]
    lines = list(tables.lines(dataclasses.replace(some_results(), measurements=tuple(rows)), BASELINE))
    table = lines[lines.index(next(line for line in lines if line.startswith("memory: "))) :]
    assert table[1].split() == ["32", "->", "48"]
    assert table[3].split() == [BASELINE, "2.00"]
    assert table[4].split() == [*OURS.split(), "2.00", "+", "1.25"]


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


def test_comparing_needs_something_in_common(tmp_path: Path) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    some_results().write(before)
    dataclasses.replace(some_results(), measurements=()).write(after)
    with pytest.raises(ValueError, match="have no case in common"):
        list(comparison.lines(before, after))


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "results.png"
    assert bench("--shapes", "1x32x32,2x32x32,1x32x48", "--plot", str(file)) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"ao_arm bench: .*results\.xyz"):
        bench("--shapes", "1x32x32", "--plot", str(tmp_path / "results.xyz"))


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


def test_a_plot_without_matplotlib_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = r"ao_arm bench: not installed: matplotlib\. Run: pip install 'ao_arm\[bench\]'"
    with pytest.raises(SystemExit, match=message):
        bench("--plot", str(tmp_path / "results.png"))
