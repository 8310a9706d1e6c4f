"""Counts how often each block of code runs in the marked regions of a program of the emulated machine."""

import subprocess
import tempfile
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cache import Report
from cycles_pieces import plugin
from emulator_piece import emulator
from marks import LABEL

INSTRUCTION_BYTES = 4
# Blocks that run rarely are very many. The hottest ones, of this share of all instructions, stand for them.
PRICED_SHARE = 0.995


class CountingError(RuntimeError):
    """A program to count did not run to its end; the message is what it printed."""


@dataclass(frozen=True)
class Block:
    """Code that ran in a region."""

    address: int
    executions: int
    code: str  # the instructions' bytes, in hexadecimal

    @property
    def instructions(self) -> int:
        """How many instructions ran."""
        return self.executions * (len(self.code) // (2 * INSTRUCTION_BYTES))


@dataclass(frozen=True, order=True)
class Mapping:
    """A part of a file in the guest's memory."""

    start: int
    end: int
    offset: int
    file: str


@dataclass
class Thread:
    """What one thread ran in a region."""

    blocks: list[Block] = field(default_factory=list)

    @property
    def instructions(self) -> int:
        """How many instructions ran."""
        return sum(block.instructions for block in self.blocks)

    def hottest(self) -> list[Block]:
        """The blocks of most of the instructions, in a fixed order."""
        chosen, left = [], PRICED_SHARE * self.instructions
        for block in sorted(self.blocks, key=lambda block: (-block.instructions, block.code, block.address)):
            if left <= 0:
                break
            chosen.append(block)
            left -= block.instructions
        return chosen


@dataclass(frozen=True)
class Fills:
    """The lines that the block at an address brought into the first level of caches, and into the second."""

    address: int
    first: int
    second: int


@dataclass
class Region:
    """What the plugin counted in one region, for each thread that ran in it."""

    label: str = ""
    caller: int = 0  # the thread that marked the region
    threads: dict[int, Thread] = field(default_factory=dict)
    mappings: list[Mapping] = field(default_factory=list)
    fills: list[Fills] = field(default_factory=list)  # of the thread whose accesses were modelled


def parse_regions(text: str) -> list[Region]:
    """The regions in a file that the plugin wrote."""
    regions: list[Region] = []
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "region":
            regions.append(Region(caller=int(rest, 16)))
        elif kind == "map":
            words = rest.split(maxsplit=5)
            start, end = (int(address, 16) for address in words[0].split("-"))
            regions[-1].mappings.append(Mapping(start, end, int(words[2], 16), words[5]))
        elif kind == "block":
            address, code, *counts = rest.split()
            for count in counts:
                thread, executions = (int(number, 16) for number in count.split(":"))
                block = Block(int(address, 16), executions, code)
                regions[-1].threads.setdefault(thread, Thread()).blocks.append(block)
        elif kind == "fills":
            regions[-1].fills.append(Fills(*(int(number, 16) for number in rest.split())))
        elif kind == "unknown" and int(rest, 16):
            raise CountingError(f"{int(rest, 16)} accesses to memory are not modelled: they are of gathers or scatters")
    for region in regions:
        for ran in region.threads.values():
            ran.blocks = joined(ran.blocks)
    return regions


def joined(blocks: Sequence[Block]) -> list[Block]:
    """The blocks, with those put together again that QEMU cut although nothing branches there: where a page ends.

    What one part of a loop costs, repeated, is more than its share of the whole. A loop's first round may come out of
    another block than the later ones do: whatever ends where a block starts takes its own executions of it.
    """
    done: list[Block] = []
    starts: dict[int, Block] = {}
    for block in sorted(blocks, key=lambda block: -block.address):  # so that what follows is complete
        end = block.address + len(block.code) // 2
        rest = starts.get(end)
        if rest is not None and rest.executions >= block.executions and not _branches(block.code):
            starts[end] = replace(rest, executions=rest.executions - block.executions)
            block = replace(block, code=block.code + rest.code)
        known = starts.get(block.address)
        if known is not None:  # translated twice
            done.append(known)
        starts[block.address] = block
    return [block for block in (*done, *starts.values()) if block.executions]


def _branches(code: str) -> bool:
    """Whether the last instruction is of the group of branches, exceptions and system calls."""
    last = int.from_bytes(bytes.fromhex(code[-2 * INSTRUCTION_BYTES :]), "little")
    return last >> 26 & 0b111 == 0b101


class Counter:
    """Runs AArch64 programs in the emulator that counts."""

    def __init__(self, root: Path, report: Report = print) -> None:
        built = emulator(report)
        self._root = root
        self._emulator = built / "qemu-aarch64"
        self._plugin = plugin(built, report)

    def run(
        self, model: str, command: Sequence[str | Path], env: Dictionary[str, str], caches: Sequence[int] = ()
    ) -> list[Region]:
        """Run a program on one of QEMU's CPU models; its regions, in the order in which they ended.

        `caches` are bytes and ways of the first level, and of the second, if they are to be modelled.
        """
        with tempfile.TemporaryDirectory() as folder:
            counts = Path(folder) / "counts"
            modelled = f",caches={':'.join(map(str, caches))}" if caches else ""
            options = ["-cpu", model, "-plugin", f"{self._plugin},out={counts}{modelled}", "-L", str(self._root)]
            done = subprocess.run(
                [str(self._emulator), *options, *command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            if done.returncode:
                raise CountingError(f"`{command[0]}` ended with exit code {done.returncode}:\n{done.stdout}")
            regions = parse_regions(counts.read_text())
        labels = [line.removeprefix(LABEL) for line in done.stdout.splitlines() if line.startswith(LABEL)]
        if len(labels) != len(regions):
            raise CountingError(f"there are {len(regions)} regions but {len(labels)} labels in:\n{done.stdout}")
        for region, label in zip(regions, labels, strict=True):
            region.label = label
        return regions
