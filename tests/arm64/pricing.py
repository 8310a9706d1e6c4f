"""What counted code would cost on a core: llvm-mca's cycles for each block of it, and the functions it belongs to."""

import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from counting import INSTRUCTION_BYTES, Mapping, Thread
from llvm_tools import run_tool
from symbols import function_at

ITERATIONS = 100
# Blocks to price at a time: llvm-mca is started once for each batch.
BATCH = 50
PROCESSES = 2


class Core:
    """llvm-mca's model of a core."""

    def __init__(self, name: str, llvm: Path) -> None:
        self.name = name
        self.llvm = llvm
        self._prices: dict[str, float] = {}

    def cycles(self, thread: Thread) -> float:
        """The cycles of what a thread ran."""
        hottest = thread.hottest()
        prices = self.prices({block.code for block in hottest})
        instructions = sum(block.instructions for block in hottest)
        cycles = sum(block.executions * prices[block.code] for block in hottest)
        return cycles * thread.instructions / instructions if instructions else 0.0

    def functions(self, thread: Thread, mappings: Sequence[Mapping], top: int) -> list[tuple[str, float]]:
        """The `top` costliest functions of a thread, with their shares of its cycles."""
        if not top:
            return []
        hottest = thread.hottest()
        prices = self.prices({block.code for block in hottest})
        spent: dict[str, float] = {}
        for block in hottest:
            name = function_at(self.llvm, block.address, mappings)
            spent[name] = spent.get(name, 0.0) + block.executions * prices[block.code]
        total = sum(spent.values()) or 1.0
        costliest = sorted(spent, key=lambda name: -spent[name])[:top]
        return [(name, spent[name] / total) for name in costliest]

    def prices(self, codes: Collection[str]) -> dict[str, float]:
        """The cycles of one execution of each code, when it follows another one of the same."""
        missing = sorted(set(codes) - self._prices.keys())
        batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
        with ThreadPoolExecutor(PROCESSES) as pool:
            for prices in pool.map(self._price, batches):
                self._prices.update(prices)
        return {code: self._prices[code] for code in codes}

    def _price(self, codes: Sequence[str]) -> dict[str, float]:
        parts = [
            "\n".join((f"# LLVM-MCA-BEGIN {number}", *lines, "# LLVM-MCA-END"))
            # llvm-mca refuses input without any instruction that it knows.
            for number, lines in enumerate([*self._disassemble(codes), ["nop"]])
        ]
        words = ["-mtriple=aarch64", f"-mcpu={self.name}", "-mattr=+all", f"-iterations={ITERATIONS}"]
        words += ["-resource-pressure=false", "-instruction-info=false", "-skip-unsupported-instructions=any"]
        printed = run_tool(self.llvm, "llvm-mca", words, "\n".join(parts)).stdout
        found = re.findall(r"^\[\d+\] Code Region - (\d+)$.*?^Total Cycles: +(\d+)$", printed, re.MULTILINE | re.DOTALL)
        cycles = {int(number): int(total) / ITERATIONS for number, total in found}
        # What it does not list it knows nothing of: a system call, for example.
        return {code: cycles.get(number, 0.0) for number, code in enumerate(codes)}

    def _disassemble(self, codes: Sequence[str]) -> list[list[str]]:
        """The assembly of each code; words that are no instructions are left out."""
        size = 2 * INSTRUCTION_BYTES
        words = [code[start : start + size] for code in codes for start in range(0, len(code), size)]
        text = "\n".join(" ".join(f"0x{word[i : i + 2]}" for i in range(0, size, 2)) for word in words)
        done = run_tool(self.llvm, "llvm-mc", ["-triple=aarch64", "-mattr=+all", "-disassemble"], text)
        refused = {int(number) for number in re.findall(r"^<stdin>:(\d+):\d+: warning", done.stderr, re.MULTILINE)}
        printed = iter([line.strip() for line in done.stdout.splitlines() if not line.strip().startswith(".")])
        lines = iter(["" if number in refused else next(printed) for number in range(1, len(words) + 1)])
        return [[line for line in islice(lines, len(code) // size) if line] for code in codes]
