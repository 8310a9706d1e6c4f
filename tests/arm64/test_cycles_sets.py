"""Sets of shapes that are looked at as a whole: what they hold, and the tables of their figures."""

from pathlib import Path

import pytest
from cycles import main
from cycles_figures import Row, write
from cycles_sets import GRID_SIZES, SETS, set_table


def row(candidate: str, shape: str, busiest: int, threads: int = 16) -> Row:
    return Row(f"{candidate} {shape}", threads, 0, 16 * busiest, busiest, working=16, regions=1)


def llama(busiest: dict[str, int], threads: int = 16) -> list[Row]:
    return [row(name, shape, of, threads) for name, of in busiest.items() for shape in SETS["llama-3-8b-decode"].shapes]


def test_the_sample_is_of_the_grid_and_holds_every_size() -> None:
    sample, grid = SETS["static-grid"].shapes, SETS["static-grid-all"].shapes
    assert len(grid) == 7 * 4 * 4
    assert sample.keys() < grid.keys()
    rows, *sizes = zip(*(map(int, shape.split("x")) for shape in sample), strict=True)
    assert set(rows) == {8, 16, 32, 64, 128, 256, 512}
    assert all(sorted(side) == sorted(2 * GRID_SIZES) for side in sizes)


def test_ratios_shape_by_shape_with_their_mean_and_the_least() -> None:
    rows = [
        row("static-s8", "8x4096x768", 100), row("torch-static-s8", "8x4096x768", 150),
        row("static-s8", "128x768x768", 100), row("torch-static-s8", "128x768x768", 120),
        row("static-u8", "8x4096x768", 100), row("torch-static-u8-per-channel", "8x4096x768", 500),
        row("static-s8", "5x5x5", 1), row("torch-static-s8", "5x5x5", 1),
    ]  # fmt: skip
    lines = [line.split() for line in set_table("static-grid", rows).splitlines()]
    assert lines[0][-6:] == ["static-s8", "/", "torch-static-s8", "static-u8", "/", "torch-static-u8-per-channel"]
    assert lines[1:] == [
        ["8x4096x768", "16", "1.50", "5.00"],
        ["128x768x768", "16", "1.20", "-"],
        ["mean", "1.35", "5.00"],
        ["least", "1.20", "5.00"],
    ]


def test_the_layers_of_a_llama_are_summed_up() -> None:
    rows = llama({"ours": 1000, "torch-per-tensor": 2500, "int4-g32": 500})
    lines = set_table("llama-3-8b-decode", rows).splitlines()
    assert "7 layers" in lines[0]
    found = {line.rsplit("  ", 1)[0].strip(): line.rsplit("  ", 1)[1].strip() for line in lines[1:]}
    assert found["ao_arm, per token x per channel"] == "7.0 (2.50 x)"
    assert found["ao_arm, 4-bit weights in groups of 32, op alone"] == "3.5"
    with pytest.raises(ValueError, match="ours has no figures of 1x14336x4096 with 16 threads"):
        set_table("llama-3-8b-decode", rows[:3])


def test_a_set_chooses_among_figures_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures"
    write(file, "neoverse-v1", [*llama({"ours": 1000, "torch-per-tensor": 2500}), row("ours", "1x768x768", 77_700)])
    assert main(["--set", "llama-3-8b-decode", "--from", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "(2.50 x)" in printed
    assert "1x768x768" not in printed
    write(file, "neoverse-v1", llama({"ours": 1000})[:2])
    assert main(["--set", "llama-3-8b-decode", "--from", str(file)]) == 2
    assert "ours has no figures of 1x4096x14336, 1x14336x4096" in capsys.readouterr().err


def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--shapes", "1x2x3"], ["--model", "bert-base"], ["--caches"]):
        with pytest.raises(SystemExit):
            main(["--set", "static-grid", *options])
        assert "--set goes with neither" in capsys.readouterr().err
