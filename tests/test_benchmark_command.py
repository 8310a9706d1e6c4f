"""The benchmark's command: what it prints, and what it refuses."""

import argparse
import dataclasses
from pathlib import Path

import pytest
from benchmarked import OURS, bench, row_of

from ao_arm.__main__ import main
from ao_arm.benchmark import candidates, command, layers, results
from ao_arm.benchmark.candidates import BASELINE
from ao_arm.system import EMULATED_CPU, current_system


@pytest.mark.one_cpu
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


@pytest.mark.x86
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


@pytest.mark.x86
def test_a_wrong_result_of_ours_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = dataclasses.replace(row_of(OURS), least_sqnr_db=99)
    monkeypatch.setattr(candidates, "CANDIDATES", (row_of(BASELINE), strict))
    assert main(["bench", "--shapes", "1x32x32", "--only", "ao_arm*", "--no-timing"]) == 1
    assert f"WRONG, not timed: {OURS}: its SQNR to fp32 is" in capsys.readouterr().out


@pytest.mark.x86
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


@pytest.mark.x86
def test_a_baseline_that_is_not_run_is_one_line() -> None:
    with pytest.raises(SystemExit, match="--baseline must be one of the candidates that are run, not 'int3'"):
        main(["bench", "--baseline", "int3"])


@pytest.mark.x86
def test_presets_hold_what_they_say() -> None:
    assert len(layers.FULL) == 8 * 5 * 5
    assert set(command.PRESETS) == set(command._SHAPES) == {"quick", "full"}
    assert layers.shapes(" 64x768x3072,64x768x3072,1x2x3") == ((64, 768, 3072), (1, 2, 3))
    with pytest.raises(argparse.ArgumentTypeError):
        layers.shapes("axbxc")
