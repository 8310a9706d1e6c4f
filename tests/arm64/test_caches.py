"""The model of caches: what it makes of patterns of accesses, and that it sees the accesses of emulated programs."""

import ctypes
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import cycles
import cycles_guest
import pytest
import torch
from cache import Report
from counting import Counter, CountingError, Fills, Region, parse_regions
from cycles import main
from cycles_caches import CacheRow, cache_row, cache_tables, caches_caveat
from cycles_figures import TARGETS, Row, read
from cycles_pieces import llvm
from machine import Machine
from pricing import Core

SMALL = (1 << 10, 4, 8 << 10, 8)  # 4 sets of 4 lines, 16 of 8
LINE = 64

HARNESS = r"""
#include "caches.h"

static Caches caches;
static Fills fills;

void make(const uint64_t* sizes) {
    make_caches(&caches, (uint64_t[]){sizes[0], sizes[2]}, (uint64_t[]){sizes[1], sizes[3]});
}
void empty(void) { empty_caches(&caches); }
void access(uint64_t address, uint64_t bytes) { access_bytes(&caches, address, bytes, &fills); }
const uint64_t* brought(void) { return &fills.first; }
"""

Brought = tuple[int, int]
Access = Callable[[Sequence[int], int], Brought]


@pytest.fixture
def access(tmp_path: Path) -> Access:
    """Accesses some addresses in turn, so many bytes at each; returns how many lines came into each level."""
    (tmp_path / "harness.c").write_text(HARNESS)
    here = Path(__file__).parent
    command = ("gcc", "-O1", "-shared", "-fPIC", f"-I{here}", "-o", tmp_path / "harness.so", tmp_path / "harness.c")
    subprocess.run(command, check=True)
    model = ctypes.CDLL(str(tmp_path / "harness.so"))
    model.make((ctypes.c_uint64 * 4)(*SMALL))
    model.brought.restype = ctypes.POINTER(ctypes.c_uint64)

    def brought() -> Brought:
        return model.brought()[0], model.brought()[1]

    def run(addresses: Sequence[int], size: int = 1) -> Brought:
        first, second = brought()
        for address in addresses:
            model.access(ctypes.c_uint64(address), ctypes.c_uint64(size))
        return brought()[0] - first, brought()[1] - second

    return run


def lines(count: int, first: int = 1, apart: int = 1) -> list[int]:
    """Addresses of lines."""
    return [(first + number * apart) * LINE for number in range(count)]


@pytest.mark.x86
def test_what_fits_is_brought_in_once(access: Access) -> None:
    assert access(range(LINE, 17 * LINE, 4), 4) == (16, 16)  # as much as the first level holds
    assert access(lines(16), LINE) == (0, 0)
    assert access(lines(112, 17), 1) == (112, 112)  # as much as the second one does
    assert access(lines(128), 1) == (128, 0)
    assert access(lines(16, 113), 1) == (0, 0)
    assert access(lines(1, 129), 1) == (1, 1)


@pytest.mark.x86
def test_a_stream_that_does_not_fit_comes_anew_each_time(access: Access) -> None:
    for _ in range(2):
        assert access(lines(144), 16) == (144, 144)  # nine in each set of eight


@pytest.mark.x86
def test_lines_of_one_set_push_each_other_out(access: Access) -> None:
    five = lines(5, apart=4)  # one set of the first level, four of the second
    assert access(five, 1) == (5, 5)
    assert access(3 * five, 1) == (15, 0)
    assert access(five[1:] * 3, 1) == (0, 0)


@pytest.mark.x86
def test_the_line_used_least_recently_leaves(access: Access) -> None:
    a, b, c, d, e = lines(5, apart=4)
    access([a, b, c, d, a], 1)
    assert access([e], 1) == (1, 1)
    assert access([c, d, a, e], 1) == (0, 0)
    assert access([b], 1) == (1, 0)
    assert access([c], 1) == (1, 0)


@pytest.mark.x86
def test_what_the_second_level_loses_the_first_one_loses(access: Access) -> None:
    kept, *others, last = lines(9, apart=16)  # all in one set of either level
    access([kept], 1)
    for other in others:
        assert access([other, kept], 1) == (1, 1)
    # Of the second level, which sees only what the first one has not, it is the line used least recently.
    access([last], 1)
    assert access([kept], 1) == (1, 1)


@pytest.mark.x86
def test_an_access_may_touch_several_lines(access: Access) -> None:
    assert access([2 * LINE - 1], 2) == (2, 2)
    assert access([4 * LINE - 16], 32) == (2, 2)
    assert access([9 * LINE], 3 * LINE) == (3, 3)
    assert access([9 * LINE + 17], 16) == (0, 0)


PROGRAM = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KIB = 1024, LINE = 64 };

static uint8_t buffer[8 << 20] __attribute__((aligned(1 << 20)));
static uint8_t* fresh = buffer + (4 << 20);  // from here on nothing was touched
static volatile uint8_t sink;

#define REGION(label, first, second, ...)             \
    do {                                              \
        syscall(0x1A17, 0);                           \
        __VA_ARGS__;                                  \
        syscall(0x1A17, 1);                           \
        printf("region: %s %d %d\n", label, first, second); \
    } while (0)

static void loads(size_t bytes, size_t apart) {
    for (size_t i = 0; i < bytes; i += apart) sink = buffer[i];
}

static void stores(size_t from, size_t bytes) {
    for (size_t i = from; i < from + bytes; i += 8) *(volatile uint64_t*)(buffer + i) = i;
}

#ifdef __ARM_FEATURE_SVE
// One instruction, with `at` of a fresh page in x0, 64 in x1 and predicates of 32 bytes: all in p0, of its 32-bit lanes
// the first two in p1 and the third in p2, none in p3. It brings in so many lines.
#define ONE(lines, instruction, at)                                                                       \
    do {                                                                                                  \
        uint8_t* const address = fresh + (at);                                                            \
        fresh += 4096;                                                                                    \
        syscall(0x1A17, 0);                                                                               \
        register uint8_t* x0 __asm__("x0") = address;                                                     \
        register uint64_t x1 __asm__("x1") = 64;                                                          \
        __asm__ volatile("ptrue p0.b\n ptrue p1.s, vl2\n ptrue p2.s, vl3\n bic p2.b, p0/z, p2.b, p1.b\n"  \
                         "pfalse p3.b\n" instruction ::"r"(x0), "r"(x1)                                   \
                         : "memory", "p0", "p1", "p2", "p3", "v0", "v1", "v2", "v3");                     \
        syscall(0x1A17, 1);                                                                               \
        printf("region: %s at %d; %d %d\n", instruction, (int)(at), lines, lines);                        \
    } while (0)

static void instructions(void) {
    ONE(1, "ld1b z0.b, p0/z, [x0]", 0);
    ONE(2, "ld1b z0.b, p0/z, [x0]", 48);
    ONE(2, "ld1b z0.b, p0/z, [x0, #1, mul vl]", 16);
    ONE(1, "ld1b z0.b, p0/z, [x0, #-1, mul vl]", 48);
    ONE(1, "ld1b z0.b, p0/z, [x0, x1]", 32);
    ONE(1, "ld1b z0.s, p0/z, [x0, #1, mul vl]", 48);
    ONE(2, "ld1w z0.s, p0/z, [x0, x1, lsl #2]", 40);
    ONE(1, "ld1w z0.s, p1/z, [x0]", 56);
    ONE(1, "ld1w z0.s, p2/z, [x0]", 52);
    ONE(2, "ld1w z0.s, p2/z, [x0]", 53);
    ONE(0, "ld1w z0.s, p3/z, [x0]", 0);
    ONE(2, "ld1sh z0.d, p0/z, [x0]", 57);
    ONE(1, "ld1d z0.d, p0/z, [x0]", 32);
    ONE(2, "ldnt1w z0.s, p0/z, [x0, #2, mul vl]", 60);
    ONE(2, "ldff1b z0.b, p0/z, [x0, x1]", 60);
    ONE(2, "ldnf1b z0.b, p0/z, [x0]", 60);
    ONE(2, "ld2w {z0.s, z1.s}, p0/z, [x0]", 1);
    ONE(1, "ld2w {z0.s, z1.s}, p1/z, [x0]", 48);
    ONE(2, "ld3b {z0.b, z1.b, z2.b}, p0/z, [x0, x1]", 0);
    ONE(3, "ld4h {z0.h, z1.h, z2.h, z3.h}, p0/z, [x0, #4, mul vl]", 32);
    ONE(1, "ld1rw z0.s, p0/z, [x0, #60]", 0);
    ONE(1, "ld1rb z0.s, p0/z, [x0, #1]", 63);
    ONE(1, "ld1rqb z0.b, p0/z, [x0]", 48);
    ONE(2, "ld1rqb z0.b, p0/z, [x0, #16]", 40);
    ONE(1, "ld1rqw z0.s, p1/z, [x0]", 56);
    ONE(2, "ld1rqw z0.s, p0/z, [x0, x1, lsl #2]", 56);
    ONE(1, "ldr z0, [x0]", 32);
    ONE(2, "ldr z0, [x0, #-1, mul vl]", 16);
    ONE(1, "ldr p3, [x0, #9, mul vl]", 20);
    ONE(2, "ldr p3, [x0]", 62);
    ONE(2, "str z0, [x0, #3, mul vl]", 16);
    ONE(1, "str p0, [x0, #-1, mul vl]", 4);
    ONE(2, "st1b z0.b, p0, [x0]", 63);
    ONE(1, "st1b z0.d, p0, [x0, #-1, mul vl]", 64);
    ONE(2, "st1w z0.s, p0, [x0, x1, lsl #2]", 33);
    ONE(1, "st1d z0.d, p0, [x0, x1, lsl #3]", 32);
    ONE(2, "stnt1d z0.d, p0, [x0, #-8, mul vl]", 300);
    ONE(1, "stnt1b z0.b, p0, [x0, x1]", 32);
    ONE(2, "st2w {z0.s, z1.s}, p0, [x0, #2, mul vl]", 63);
    ONE(2, "st4d {z0.d, z1.d, z2.d, z3.d}, p0, [x0, x1, lsl #3]", 0);
    ONE(0, "prfb pldl1keep, p0, [x0]", 0);
    ONE(0, "prfw pldl1keep, p0, [x0, x1, lsl #2]", 0);
    ONE(1, "dc zva, x0", 63);
    ONE(2, "ldp q0, q1, [x0]", 48);
    ONE(1, "ldadd w1, w1, [x0]", 60);
    if (getenv("GATHERS")) ONE(0, "mov z1.s, #0; ld1w z0.s, p0/z, [x0, z1.s, uxtw]", 0);
}
#endif

int main(void) {
    syscall(0x1A17, 2);
    REGION("warm-up;", 0, 0, loads(0, 64));
    REGION("stream;", 4096, 4096, loads(256 * KIB, 16));
    REGION("again;", 4096, 0, loads(256 * KIB, LINE));
    REGION("first level;", 512, 0, loads(32 * KIB, LINE));
    REGION("first level again;", 0, 0, loads(32 * KIB, 1));
    REGION("conflicts;", 80, 8, for (int i = 0; i < 10; i++) for (int j = 64; j < 72; j++) sink = buffer[j * 16 * KIB]);
    REGION("stores;", 1024, 0, stores(128 * KIB, 64 * KIB));
    REGION("beyond the second level, which has 256 KiB;", 32768, 28672, loads(2048 * KIB, LINE));
    REGION("beyond the second level;", 32768, 32768, loads(2048 * KIB, LINE));
    REGION("memset;", 2048, 2048, memset(fresh, 0, 128 * KIB));
    fresh += 128 * KIB;
#ifdef __ARM_FEATURE_SVE
    instructions();
#endif
    syscall(0x1A17, 3);
    REGION("not modelled;", 0, 0, loads(2048 * KIB, LINE));
    return 0;
}
"""


def built(machine: Machine, folder: Path, instructions: str) -> Path:
    """The program above."""
    (folder / "accesses.c").write_text(PROGRAM)
    flags = ("-O2", f"-march={instructions}", "-Wl,-z,now")  # nothing is looked up in a region
    subprocess.run([machine.tools() / "gcc", *flags, "-o", folder / "accesses", folder / "accesses.c"], check=True)
    return folder / "accesses"


def brought(region: Region) -> Brought:
    return sum(fills.first for fills in region.fills), sum(fills.second for fills in region.fills)


@pytest.mark.parametrize(
    ("cpu", "instructions", "cases"), [("neoverse-v1", "armv8.2-a+sve", 55), ("neoverse-n1", "armv8.2-a", 10)]
)
def test_an_emulated_program_brings_in_what_it_accesses(
    counter: Counter, machine: Machine, tmp_path: Path, cpu: str, instructions: str, cases: int
) -> None:
    program = built(machine, tmp_path, instructions)
    _, *regions = counter.run(cpu, [program], dict(os.environ), TARGETS[cpu].caches)
    by_case = {region.label.partition("; ")[0]: region for region in regions}
    assert len(by_case) == len(regions) == cases
    for case, region in by_case.items():
        expected = tuple(map(int, region.label.partition("; ")[2].split()))
        # Beside large buffers, a little is the program's stack and libraries, which come back.
        few = 8 if expected[0] > 16 else 0
        assert brought(region) == pytest.approx(expected, abs=few), case


def test_accesses_that_are_not_modelled_are_no_measurement(counter: Counter, machine: Machine, tmp_path: Path) -> None:
    program = built(machine, tmp_path, "armv8.2-a+sve")
    with pytest.raises(CountingError, match="1 accesses to memory are not modelled: they are of gathers"):
        counter.run("neoverse-v1", [program], {**os.environ, "GATHERS": "1"}, TARGETS["neoverse-v1"].caches)


def test_what_the_plugin_writes_of_caches_is_read() -> None:
    (region,) = parse_regions("region 0\nblock 1010 00112233 0:a\nfills 1010 1f 2\nunknown 0\n")
    assert region.fills == [Fills(0x1010, 31, 2)]
    with pytest.raises(CountingError, match="17 accesses"):
        parse_regions("region 0\nunknown 11\n")


@pytest.mark.usefixtures("counter")
def test_lines_are_told_by_function(report: Report) -> None:
    region = Region("ours 1x768x768 cold", fills=[Fills(1 << 40, 300, 100), Fills(2 << 40, 100, 0)])
    priced = Row(region.label, 1, 0, cycles=1600, busiest=1600, working=1, regions=0)
    row = cache_row(region, priced, Core("neoverse-v1", llvm(report)), top=1)
    assert row == CacheRow(row.row, True, 400, 100, (("code made at run time", 1.0, 1.0),))
    assert row.row.label == "ours 1x768x768"


def test_tables_of_caches() -> None:
    def row(label: str, cold: bool, first: int, second: int) -> CacheRow:
        return CacheRow(Row(label, 1, 0, 25_600, 25_600, 1, 0), cold, first, second, (("a: f", 0.5, 0.25),))

    ours = row("ours 1x768x768", True, 10_000, 4_000), row("ours 1x768x768", False, 100, 0)
    rows = [*ours, row("fp32 8x8x8", True, 4, 2)]
    parts = cache_tables(rows, "neoverse-v1").split("\n\n")
    assert [line.split()[-7:] for line in parts[0].splitlines()[1:]] == [
        ["cold", "26", "10,000", "4,000", "256", "25.00", "10.00"],
        ["warm", "26", "100", "0", "0", "0.25", "0.00"],
    ]
    assert parts[1].splitlines()[1].split() == ["50.0%", "25.0%", "a:", "f"]
    assert len(parts) == 5
    assert parts[3].startswith("8x8x8, neoverse-v1")
    assert "1024 KiB in 8" in caches_caveat("neoverse-v1") and "2048 KiB in 8" in caches_caveat("neoverse-v2")


def test_figures_of_caches_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("ours 8x768x768", 1, 90_000, 63_000, 63_000, 1, 0)
    rows = [CacheRow(row, True, 12_200, 9_800), CacheRow(row, False, 11_000, 90, (("a: f", 0.5, 0.25),))]
    monkeypatch.setattr(cycles, "Machine", lambda report: None)
    monkeypatch.setattr(cycles, "compare_caches", lambda *asked: rows)
    file = tmp_path / "caches.json"
    assert main(["--caches", "--cpu", "neoverse-n1", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert (written["cpu"], [found["cold"] for found in written["rows"]]) == ("neoverse-n1", [True, False])
    assert "neoverse-n1's data caches: 64 KiB in 4 ways" in written["what"]
    warm = written["rows"][1]
    assert (warm["first"], warm["second"], warm["functions"]) == (11_000, 90, [["a: f", 0.5, 0.25]])
    assert (warm["row"]["label"], warm["row"]["cycles"]) == ("ours 8x768x768", 63_000)
    with pytest.raises(ValueError, match="is no file that --json wrote without --caches"):
        read([file])


def test_each_call_has_a_region_with_a_cold_weight_and_one_without(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.inference_mode():
        cycles_guest.main(["fp32", "ours"], [(2, 64, 48)], with_caches=True)
    assert capsys.readouterr().out == "".join(
        f"region: {name} 2x64x48 {state}\n" for name in ("fp32", "ours") for state in ("cold", "warm")
    )


@pytest.mark.parametrize("other", [["--threads", "2"], ["--plot", "x"], ["--from", "x"]])
def test_options_that_do_not_go_with_caches(other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--caches", *other])
    assert other[0] in capsys.readouterr().err
