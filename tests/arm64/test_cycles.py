"""The modelled cycles: what they come to for code that is known, and what ao_arm is to stay below."""

import json
import os
import subprocess
from dataclasses import asdict
from itertools import product
from pathlib import Path

import cycles_guest
import cycles_runtimes
import pytest
import torch
from cache import Report
from commands import Unavailable
from counting import Block, Counter, CountingError, joined, parse_regions
from cycles import GUEST, candidates, compare, main, panel, priced, threads_panels, with_runtimes
from cycles_figures import CANDIDATES, GROUPS, PEERS, RUNTIMES, THREADS_CAVEAT, Row, read, write
from cycles_pieces import llvm
from cycles_plot import draw_panel
from cycles_runtimes import obstacles, site_packages, write_models
from cycles_tables import table
from cycles_threads_plot import draw_threads_panel
from machine import Machine
from marks import LABEL
from pieces import SITE_PACKAGES
from pricing import Core
from symbols import shortened
from torch import Tensor

import ao_arm
from ao_arm.benchmark import candidates as candidates_of_bench

# Calls on neoverse-v1, in cycles; with 64 rows the multiplications alone take 295 thousand.
TARGETS = {
    "ours 1x768x768": 30_000,
    "ours 64x768x768": 390_000,
    "static-u8 64x768x768": 375_000,
    "int4-g32 64x768x768": 590_000,
    "int4-g128 64x768x768": 470_000,
    "int4-g32 1x768x768": 34_000,
    "int4-g128 1x768x768": 31_500,
}
# These are to be faster than their peers, too, and `ours` than each library alone.
FASTER = ("ours", "static-u8", "int4-g32", "int4-g128")
# Where code lies in memory changes a little of what a call is modelled to take.
VARIATION = 1.02

# fmla v0.4s, v30.4s, v31.4s and so on, to v15: none waits for another.
FMLA = "".join((0x4E3FCFC0 + register).to_bytes(4, "little").hex() for register in range(16))

PROGRAM = r"""
#include <stdio.h>
#include <unistd.h>

static void multiply(long times) {
    syscall(0x1A17, 0);
    for (long i = 0; i < times; i++) __asm__ volatile("mul x9, x9, x9" ::: "x9");
    syscall(0x1A17, 1);
    printf("region: %ld\n", times);
}

int main(int argc, char **argv) {
    multiply(1);
    multiply(10000);
    multiply(20000);
    return argc - 1;
}
"""

TEAM_PROGRAM = r"""
#include <omp.h>
#include <stdio.h>
#include <unistd.h>

static void work_in_team(void) {
    const long times[] = {5000, 30000, 0, 10000};
    #pragma omp parallel num_threads(4)
    for (long i = 0; i < times[omp_get_thread_num()]; i++) __asm__ volatile("mul x9, x9, x9" ::: "x9");
    #pragma omp parallel num_threads(4)
    __asm__ volatile("");
}

int main(void) {
    for (int time = 0; time < 3; time++) {
        syscall(0x1A17, 0);
        work_in_team();
        syscall(0x1A17, 1);
        printf("region: %d\n", time);
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program above, for AArch64."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "multiply.c").write_text(PROGRAM)
    subprocess.run([machine.tools() / "gcc", "-O2", "-o", folder / "multiply", folder / "multiply.c"], check=True)
    return folder / "multiply"


def core(cpu: str, report: Report) -> Core:
    return Core(cpu, llvm(report))


# Four and two units for vectors.
@pytest.mark.parametrize(("cpu", "cycles"), [("neoverse-v1", 4), ("neoverse-v2", 4), ("neoverse-n1", 8)])
@pytest.mark.usefixtures("counter")
def test_price_of_known_code(cpu: str, cycles: int, report: Report) -> None:
    prices = core(cpu, report).prices([FMLA, 2 * FMLA])
    assert prices[FMLA] == pytest.approx(cycles, rel=0.05)
    assert prices[2 * FMLA] == pytest.approx(2 * cycles, rel=0.05)


@pytest.mark.usefixtures("counter")
def test_code_that_cannot_be_priced(report: Report) -> None:
    refused = "00000000"
    assert core("neoverse-v1", report).prices([refused]) == {refused: 0}
    prices = core("neoverse-v1", report).prices([refused, refused + FMLA, FMLA])
    assert prices[refused + FMLA] == prices[FMLA]


def test_twice_the_work_costs_twice(counter: Counter, program: Path, report: Report) -> None:
    runs = [counter.run("neoverse-v1", [program], dict(os.environ)) for _ in range(2)]
    assert [region.label for region in runs[0]] == ["1", "10000", "20000"]
    rows = [[priced(region, core("neoverse-v1", report), top=1) for region in run] for run in runs]
    assert rows[0] == rows[1]
    cycles = [row.cycles for row in rows[0]]
    # One multiplication waits two cycles for the one before.
    assert cycles[1] == pytest.approx(20_000, rel=0.05)
    assert cycles[2] == pytest.approx(2 * cycles[1], rel=0.05)
    last = rows[0][2]
    assert (last.threads, last.busiest, last.working, last.regions) == (1, last.cycles, 1, 0)
    ((function, share),) = last.functions
    assert function == "multiply: main" or function == "multiply: multiply"
    assert share > 0.99


def test_each_thread_has_its_own_cycles(counter: Counter, machine: Machine, tmp_path: Path, report: Report) -> None:
    (tmp_path / "team.c").write_text(TEAM_PROGRAM)
    # torch's OpenMP library: Debian's does not name the functions in which threads wait.
    path = f"-Wl,-rpath,{machine.root / SITE_PACKAGES}/torch/lib"
    command = (machine.tools() / "gcc", "-O2", "-fopenmp", path, "-o", tmp_path / "team", tmp_path / "team.c")
    subprocess.run(command, check=True)
    # What is left out must not matter: here, threads that wait run for long.
    regions = counter.run("neoverse-v1", [tmp_path / "team"], {**os.environ, "OMP_WAIT_POLICY": "active"})
    first, *later = (priced(region, core("neoverse-v1", report), threads=4, top=1) for region in regions)
    assert first.busiest == pytest.approx(60_000, rel=0.05)  # the team is created in this region
    for row in later:
        assert row.cycles == pytest.approx(90_000, rel=0.05)
        assert row.busiest == pytest.approx(60_000, rel=0.05)
        assert (row.threads, row.working, row.regions) == (4, 3, 2)
        ((function, share),) = row.functions
        assert function.startswith("team: work_in_team")
        assert share > 0.99


def test_a_program_that_fails_is_no_measurement(counter: Counter, program: Path) -> None:
    with pytest.raises(CountingError, match="ended with exit code 1"):
        counter.run("neoverse-v1", [program, "argument"], dict(os.environ))


def test_targets(machine: Machine, counter: Counter, report: Report) -> None:
    shapes = ("1x768x768", "64x768x768")
    peers = {name: PEERS[name] for name in FASTER}
    names = dict.fromkeys((*peers, *peers.values(), *GROUPS["libraries"]))
    rows = compare(machine, "neoverse-v1", tuple(names), shapes, report=report)
    print(table(rows, "neoverse-v1"))
    cycles = {row.label: row.cycles for row in rows}
    for label, target in TARGETS.items():
        assert cycles[label] <= target, label
    slower = [*peers.items(), *(("ours", library) for library in GROUPS["libraries"])]
    for (ours, peer), shape in product(slower, shapes):
        assert cycles[f"{ours} {shape}"] <= VARIATION * cycles[f"{peer} {shape}"], f"{ours} {shape}"


def test_other_runtimes_run_what_was_made_here(machine: Machine, tmp_path: Path, report: Report) -> None:
    if missing := obstacles(RUNTIMES):
        pytest.skip("; ".join(dict.fromkeys(missing.values())))
    names = sorted(RUNTIMES)
    write_models(tmp_path, names, ["3x128x40", "1x128x40"], report)
    args: list[str | Path] = [GUEST, ",".join(names), "3x128x40,1x128x40", "1", "--models", tmp_path]
    path = os.pathsep.join(map(str, (machine.build(), site_packages(report))))
    with machine.start("neoverse-n1", args, env={"PYTHONPATH": path}) as process:
        output = process.communicate()[0]
    assert process.returncode == 0, output
    labels = [line.removeprefix(LABEL) for line in output.splitlines() if line.startswith(LABEL)]
    assert labels == [f"{name} {shape}" for shape in ("3x128x40", "1x128x40") for name in names]


def test_runtimes_that_no_models_can_be_made_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(candidates_of_bench, "find_spec", lambda package: None)
    with pytest.raises(Unavailable, match=r"litert-int8: it needs `pip install 'ao_arm\[litert\]'`"):
        write_models(tmp_path, ["ours", "litert-int8"], ["1x64x40"], print)
    assert not [*tmp_path.iterdir()]
    assert with_runtimes(("ours",), print) == ("ours",)
    assert "left out is litert-int8: it needs `pip install 'ao_arm[litert]'`" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--only", "runtimes", "--threads", "16"])
    assert "leave out --threads" in capsys.readouterr().err


def test_a_wrong_result_is_no_measurement(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fp32 = cycles_guest.fp32
    monkeypatch.setitem(cycles_guest.CANDIDATES, "half", lambda *tensors: lambda: fp32(*tensors)() / 2)
    with pytest.raises(SystemExit, match=r"half is wrong for 2x16x8: 6\.0 dB"):
        cycles_guest.main(["fp32", "half"], [(2, 16, 8)])
    assert capsys.readouterr().out == "region: fp32 2x16x8\n"


def test_the_candidates_have_names() -> None:
    assert CANDIDATES.keys() == cycles_guest.CANDIDATES.keys() | cycles_runtimes.RUNTIMES.keys()
    assert cycles_runtimes.RUNTIMES.keys() == RUNTIMES


def test_what_the_plugin_writes_is_read() -> None:
    text = "region 11\nmap 1000-2000 r-xp 00000800 fe:00 12   /a folder/lib.so\nblock 1010 0011223344556677 2:1 11:a\n"
    region, empty = parse_regions(text + "region 0\n")
    assert {number: thread.instructions for number, thread in region.threads.items()} == {2: 2, 0x11: 20}
    assert region.threads[2].blocks == [Block(0x1010, 1, "0011223344556677")]
    assert (region.caller, region.mappings[0].file) == (0x11, "/a folder/lib.so")
    assert empty.threads == {}


def row(label: str, cycles: int, threads: int = 1, busiest: int | None = None, working: int = 1) -> Row:
    return Row(label, threads, 0, cycles, cycles if busiest is None else busiest, working, regions=threads - 1)


def test_table() -> None:
    rows = [row(f"{name} {shape}", 2500) for name in ("fp32", "ours") for shape in ("1x768x768", "64x768x768")]
    lines = table(rows[:-1], "neoverse-v1").splitlines()
    assert lines[0].split()[-2:] == ["1x768x768", "64x768x768"]
    assert lines[1].split()[-2:] == ["5", "295"]
    assert lines[2].startswith(CANDIDATES["fp32"]) and lines[2].split()[-2:] == ["2", "2"]
    assert lines[3].split()[-2:] == ["2", "-"]


def test_table_of_threads() -> None:
    rows = [
        row("fp32 8x768x768", 500_000),
        row("ours 8x768x768", 62_000),
        row("ours 1x768x768", 29_000, 16, 28_000, 1),
        row("ours 8x768x768", 64_000, 16, 41_500, 2),
    ]
    busiest, total = (part.splitlines() for part in table(rows, "neoverse-v1").split("\n\n"))
    assert busiest[0] == (
        "busiest thread's thousand cycles (threads that worked), neoverse-v1  threads  8x768x768  1x768x768"
    )
    assert [line.split()[-2:] for line in busiest[1:3]] == [["36.9", "-"], ["2.3", "0.3"]]
    assert [line.split()[-3:] for line in busiest[3:5]] == [["500", "(1)", "-"], ["16", "-", "-"]]
    assert [line.split()[-5:] for line in busiest[5:]][1] == ["16", "41.5", "(2)", "28.0", "(1)"]
    assert total[-1].split()[-5:] == ["16", "64.0", "[15]", "29.0", "[15]"]


def test_threads_are_written_read_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    first = [row("torch-per-tensor 8x768x768", 121_000), row("ours 8x768x768", 62_000)]
    second = [row("ours 8x768x768", 99_000, 16, 98_000, 3), row("ours 8x768x768", 64_000, 4, 52_000, 2)]
    later = [row("ours 8x768x768", 64_000, 16, 41_500, 2)]
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file, rows in zip(files, (first, second, later), strict=True):
        write(file, "neoverse-v1", rows)
    assert read(files) == {"neoverse-v1": [*first, *later, second[1]]}
    assert [THREADS_CAVEAT in json.loads(file.read_text())["what"] for file in files] == [False, True, True]

    picture = tmp_path / "threads.svg"
    command = ["--from", *map(str, files), "--plot", str(picture)]
    assert main([*command, "--threads", "1,16"]) == 0
    output = capsys.readouterr().out
    ours = [line.split()[-3:] for line in output.splitlines() if line.startswith(CANDIDATES["ours"])]
    assert ours[:2] == [["1", "62.0", "(1)"], ["16", "41.5", "(2)"]]
    assert THREADS_CAVEAT in output
    drawn = picture.read_text()
    for text in ("8x768x768, neoverse-v1", CANDIDATES["ours"], CANDIDATES["torch-per-tensor"]):
        assert f"<!-- {text} -->" in drawn
    assert "nothing measured" in drawn

    assert main([*command, "--threads", "1"]) == 0
    assert THREADS_CAVEAT not in capsys.readouterr().out
    assert "one thread" in picture.read_text()


def test_lines_over_threads() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    rows = [row("ours 8x768x768", 64_000, 16, 41_500, 2), row("torch-per-tensor 8x768x768", 121_000)]
    (shape,) = threads_panels("neoverse-v1", [*rows, row("ours 8x768x768", 62_000)])
    axis = figure.subplots()
    draw_threads_panel(axis, shape, {"ours": "red"})
    theirs, ours, limit = axis.get_lines()
    assert (list(theirs.get_xdata()), list(theirs.get_ydata())) == ([1], [121])
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([1, 16], [62, 41.5])
    assert limit.get_ydata()[0] == pytest.approx(36.864) == 16 * limit.get_ydata()[1]
    assert (theirs.get_color(), theirs.get_linestyle(), ours.get_linestyle()) == ("red", "--", "-")


def test_large_results_are_compared_in_part() -> None:
    ((rows, columns),) = cycles_guest.compared(8, 768, 768)
    assert (len(rows), len(columns)) == (8, 768)
    (rows, all_columns), (all_rows, columns) = cycles_guest.compared(128, 1024, 4096)
    assert (len(all_rows), len(all_columns)) == (128, 4096)
    for chosen, last in ((rows, 127), (columns, 4095)):
        assert len(chosen) == 16
        assert (int(chosen[0]), int(chosen[-1])) == (0, last)
    ((rows, _), _) = cycles_guest.compared(1, 16384, 8192)
    assert rows.tolist() == [0]
    (rows, columns), (all_rows, fewer) = cycles_guest.compared(512, 4096, 4096)
    assert (len(rows), len(columns), len(all_rows), len(fewer)) == (16, 256, 512, 16)


def test_large_weights_repeat_values_but_not_in_rows_and_columns() -> None:
    weight = cycles_guest.weight_of(4096, 1024, None)
    assert len(weight.unique(dim=0)) == 1024
    assert len(weight.unique(dim=1)[0]) == 4096


def test_a_wrong_part_of_a_large_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles_guest, "LARGE", 0)

    def cut(x: Tensor, weight: Tensor, bias: Tensor) -> cycles_guest.Call:
        return lambda: torch.cat([cycles_guest.fp32(x, weight, bias)()[:32], torch.zeros(32, len(bias))])

    monkeypatch.setitem(cycles_guest.CANDIDATES, "cut", cut)
    with pytest.raises(SystemExit, match="cut is wrong for 64x16x48"):
        cycles_guest.main(["cut"], [(64, 16, 48)])


def file_of(path: Path, cpu: str, cycles: dict[str, int]) -> str:
    """A file as `--json` writes it, also for cores and candidates that there are not."""
    rows = [asdict(row(label, number)) for label, number in cycles.items()]
    path.write_text(json.dumps({"cpu": cpu, "what": "", "rows": rows}))
    return str(path)


def test_files_are_merged_by_core_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    first = {"fp32 1x768x768": 1000, "ours 1x768x768": 2000, "ours 8x768x768": 3000}
    files = [
        file_of(tmp_path / "a.json", "neoverse-v1", first),
        file_of(tmp_path / "b.json", "neoverse-n1", {"ours 1x768x768": 4000}),
        file_of(tmp_path / "c.json", "neoverse-v1", {"ours 1x768x768": 5000, "int4-g32 1x768x768": 6000}),
    ]
    picture = tmp_path / "cycles.svg"
    assert main(["--from", *files, "--plot", str(picture), "--only", "ours,int4"]) == 0
    output = capsys.readouterr().out
    assert [line.split()[-1] for line in output.splitlines() if line.startswith(CANDIDATES["ours"])] == ["3", "4"]
    assert [line.split()[-2:] for line in output.splitlines() if line.startswith(CANDIDATES["int4-g32"])] == [
        ["6", "-"]
    ]
    assert CANDIDATES["fp32"] not in output
    drawn = picture.read_text()
    for text in ("modelled neoverse-v1", "modelled neoverse-n1", CANDIDATES["ours"], CANDIDATES["int4-g32"]):
        assert f"<!-- {text} -->" in drawn
    assert "nothing measured" in drawn
    assert CANDIDATES["fp32"] not in drawn


def test_a_marker_lies_at_the_multiple_of_the_limit() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axis = figure.subplots()
    drawn = panel("neoverse-n1", [row("ours 64x768x768", 2 * 64 * 768 * 768 // 32), row("ours 1x768x768", 18432)])
    draw_panel(axis, drawn, [CANDIDATES["fp32"], CANDIDATES["ours"]], ["1x768x768", "64x768x768"])
    one_row, rows, limit = axis.get_lines()
    assert (list(one_row.get_xdata()), list(rows.get_xdata()), list(limit.get_xdata())) == ([1.0], [2.0], [1, 1])
    (first,), (second,) = one_row.get_ydata(), rows.get_ydata()
    assert 0.5 < first < 1 < second < 1.5  # both in the line of the second candidate
    assert rows.get_label() == "64x768x768 (limit: 1180 thousand cycles)"


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (
        str(tmp_path / "none.json"),
        file_of(tmp_path / "core.json", "cortex-x1", {}),
        file_of(tmp_path / "candidate.json", "neoverse-v1", {"theirs 1x2x3": 1}),
        file_of(tmp_path / "label.json", "neoverse-v1", {"ours": 1}),
    ):
        assert main(["--from", file]) == 2
        assert file in capsys.readouterr().err


def test_groups_stand_for_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    assert candidates("static,ours") == ("ours", "torch-static-s8", "torch-static-u8", "static-s8", "static-u8")
    assert candidates("all") == tuple(name for name in CANDIDATES if name not in RUNTIMES)
    assert candidates("all,runtimes") == tuple(CANDIDATES)
    assert set(candidates("libraries")) == {"torch-per-tensor", "ours", "ours-acl", "kleidiai-int8"}
    assert all(name in CANDIDATES for group in GROUPS.values() for name in group)
    with pytest.raises(SystemExit):
        main(["--only", "theirs"])
    assert "'theirs' is none of" in capsys.readouterr().err


def test_symbols_are_shortened() -> None:
    assert shortened("void ao_arm::(anonymous namespace)::pack<float, std::vector<int>>(int)") == "ao_arm::pack"
    assert shortened("memcpy@@GLIBC_2.17") == "memcpy@@GLIBC_2.17"


def test_blocks_that_a_page_cuts_are_joined() -> None:
    multiply, branch = "297d099b", "e1ffff54"  # mul x9, x9, x9; b.ne
    before, start, rest = (
        Block(0x1FF4, 1, multiply * 3),
        Block(0x1FF8, 6, multiply * 2),
        Block(0x2000, 7, multiply + branch),
    )
    whole = [Block(0x1FF4, 1, multiply * 4 + branch), Block(0x1FF8, 6, multiply * 3 + branch)]
    assert sorted(joined([rest, before, start]), key=lambda block: block.address) == whole
    also_entered = [Block(0x3FFC, 7, multiply), Block(0x4000, 8, branch)]
    assert joined(also_entered) == [Block(0x4000, 1, branch), Block(0x3FFC, 7, multiply + branch)]
    alone = [Block(0x3000, 7, multiply), Block(0x2FFC, 7, branch)]
    assert joined(alone) == alone
    assert sum(block.instructions for block in joined([rest, before, start])) == 3 + 12 + 14


def test_groups_that_do_not_fit_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    cycles_guest.main(["int4-g32", "int4-g128", "int4-g32-kleidiai", "torch-int4-g128"], [(2, 96, 64)])
    assert capsys.readouterr().out == "region: int4-g32 2x96x64\n"


def test_libraries_that_are_not_there_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KLEIDIAI_INT8", raising=False)
    cycles_guest.main(["ours", "ours-acl", "kleidiai-int8"], [(2, 96, 64)])
    assert capsys.readouterr().out == "region: ours 2x96x64\n"
    # A library that is named has to be there; it has one thread.
    monkeypatch.setenv("KLEIDIAI_INT8", str(tmp_path / "none.so"))
    threads = torch.get_num_threads()
    try:
        cycles_guest.main(["ours", "kleidiai-int8"], [(2, 96, 64)], threads=2)
        assert capsys.readouterr().out == "region: ours 2x96x64\n"
        with pytest.raises(OSError, match=r"none\.so"):
            cycles_guest.main(["kleidiai-int8"], [(2, 96, 64)])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_what_other_tools_quantized_has_to_be_fused(capsys: pytest.CaptureFixture[str]) -> None:
    names = GROUPS["stock"]
    with torch.inference_mode():
        cycles_guest.main(list(names), [(4, 64, 48)])
    assert capsys.readouterr().out == "".join(f"region: {name} 4x64x48\n" for name in names)
    floats = torch.export.export(torch.nn.Linear(8, 8), (torch.randn(2, 8),)).module()
    with pytest.raises(SystemExit, match="not fused: no quantized linear layers"):
        cycles_guest.must_be_fused(ao_arm.passes.fuse_(floats))
