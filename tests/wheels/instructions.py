"""Finds the instructions in a library that not every CPU of its architecture has.

A piece may use what its object was compiled for, as `ALLOWED` says. A function that several objects may bring, of
which the linker takes one for all, has to keep to the baseline, unless its name says what it is compiled for. So has
what runs when the library is loaded.
"""

import re
import shutil
import subprocess
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from cycles_pieces import llvm
from elftools.elf.elffile import ELFFile
from link_map import Piece, linked_pieces, linked_section
from llvm_tools import run_tool

ARM_KERNELS = frozenset({"v8.2a", "fullfp16", "bf16", "dotprod", "i8mm"})

#: For each architecture: objects, what else one of a piece's symbols must match, and what the piece may then use, in
#: the words of `beyond_x86` or as LLVM's features. The first that fits counts.
ALLOWED: Mapping[str, Sequence[tuple[str, str, frozenset[str]]]] = {
    "x64": (
        (r"/ao_arm_avx2\.dir/", "", frozenset({"SSE3 or later", "VEX"})),
        (r"/ao_arm_avx512\.dir/", "", frozenset({"SSE3 or later", "VEX", "EVEX"})),
    ),
    "AArch64": (
        (r"/ao_arm_dotprod\.dir/", "", frozenset({"v8.2a", "dotprod"})),
        (r"/ao_arm_i8mm\.dir/", "", frozenset({"v8.2a", "dotprod", "i8mm"})),
        (r"/ao_arm_sve256\.dir/", "", frozenset({"v8.2a", "dotprod", "i8mm", "sve"})),
        # GCC's atomics, which see first whether the CPU has those of Armv8.1.
        (r"/libgcc\.a\((cas|swp|ldadd|ldclr|ldeor|ldset)_\d+_\d\.o\)$", "^__aarch64_", frozenset({"lse"})),
        # Micro-kernels, and what arranges operands for those of bfloat16. The libraries choose among them by the CPU.
        (r"/libarm_compute\S*\.a\(", r"\barm_gemm::(a64_|Transform<|MergeResults<|interleave_block<)", ARM_KERNELS),
        (r"/libkleidiai\.a\(kai_matmul_\w+_neon_(dotprod|i8mm)(_asm)?\.", "", ARM_KERNELS),
    ),
}
#: The namespace of what is compiled once for each instruction set, as it is in symbols.
NAMES_ITS_INSTRUCTIONS = re.compile(r"\d+isa_[a-z]")
#: Where compilers put what initializes an object's variables.
AT_LOADING = ".text.startup"

PREFIXES = bytes((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
# Of those encoded as the baseline's are. `tzcnt` is not among them: for older CPUs it is the `bsf` that compilers mean.
LATER_X86 = frozenset(
    "addsubpd addsubps haddpd haddps hsubpd hsubps lddqu movddup movshdup movsldup popcnt lzcnt cmpxchg16b".split()
)
BMI = frozenset("andn bextr blsi blsmsk blsr bzhi mulx pdep pext rorx sarx shlx shrx".split())

INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(.+)$", re.MULTILINE)

SHF_EXECINSTR, SHF_GROUP = 4, 0x200
WORD = 4


def beyond_baseline(library: Path, link_map: Path, tree: Path) -> Iterator[str]:
    """A sentence for each piece with instructions that it may not use; `tree` is where it was linked."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        architecture = elf.get_machine_arch()
        code = {
            section["sh_addr"]: section.data()
            for section in elf.iter_sections()
            if section["sh_flags"] & SHF_EXECINSTR and section["sh_type"] == "SHT_PROGBITS"
        }
        text = elf.get_section_by_name(".text")
    if architecture not in ALLOWED:
        yield f"it is for {architecture}; what each CPU has is known for {' and '.join(ALLOWED)} only"
        return
    if text is None or linked_section(link_map, ".text") != (text["sh_addr"], text["sh_size"]):
        yield f"{link_map.name} is the map of another library: its code is of another size"
        return
    pieces = Pieces(link_map, tree, architecture)
    counts: dict[Piece | None, int] = {}
    examples: dict[Piece | None, str] = {}
    for address, instruction in _on_x86(library, pieces) if architecture == "x64" else _on_arm(code, pieces):
        piece = pieces.at(address)
        counts[piece] = counts.get(piece, 0) + 1
        examples.setdefault(piece, f"{instruction} at {address:x}")
    for piece, count in counts.items():
        where = f"{piece.section} of {piece.object}" if piece else "what the linker put between objects"
        yield f"{where} may be run by any CPU but has {count} instructions that not each has: {examples[piece]}"


class Pieces(list[Piece]):
    """The pieces of a library, by their addresses, and what they may use."""

    def __init__(self, link_map: Path, tree: Path, architecture: str) -> None:
        super().__init__(sorted(linked_pieces(link_map)))
        self._starts = [piece.start for piece in self]
        self._tree = tree
        self._rules = ALLOWED[architecture]
        self._allowed: dict[Piece | None, frozenset[str]] = {None: frozenset()}

    def at(self, address: int) -> Piece | None:
        """The piece at an address; between pieces the linker fills gaps and has some code of its own."""
        before = bisect_right(self._starts, address) - 1
        return self[before] if before >= 0 and address < self[before].end else None

    def allowed_at(self, address: int) -> frozenset[str]:
        """What may be used there besides the baseline."""
        piece = self.at(address)
        if piece and piece not in self._allowed:
            self._allowed[piece] = self._allowed_in(piece)
        return self._allowed[piece]

    def _allowed_in(self, piece: Piece) -> frozenset[str]:
        if piece.section.startswith(AT_LOADING):
            return frozenset()
        shared = piece.section in _shared_sections(self._tree / piece.object)
        if shared and not NAMES_ITS_INSTRUCTIONS.search(piece.section):
            return frozenset()
        for pattern, symbol, features in self._rules:
            if re.search(pattern, f"/{piece.object}") and any(
                re.search(symbol, name) for name in piece.symbols or ("",)
            ):
                return features
        return frozenset()


@cache
def _shared_sections(path: Path) -> frozenset[str]:
    """Sections of an object that others may bring as well: those in COMDAT groups. Archives are not looked into."""
    if not path.is_file():
        return frozenset()
    with path.open("rb") as file:
        return frozenset(section.name for section in ELFFile(file).iter_sections() if section["sh_flags"] & SHF_GROUP)


def _on_arm(code: Mapping[int, bytes], pieces: Pieces) -> Iterator[tuple[int, str]]:
    """Asks LLVM which words are instructions of a CPU that has what is allowed there and no more."""
    places: dict[frozenset[str], dict[bytes, list[int]]] = {}
    for first, text in code.items():
        for at in range(0, len(text), WORD):
            words = places.setdefault(pieces.allowed_at(first + at), {})
            words.setdefault(text[at : at + WORD], []).append(first + at)
    for features, words in places.items():
        lines = [" ".join(f"0x{byte:02x}" for byte in word) for word in words]
        told = _llvm_mc([f"--mattr=+{feature}" for feature in features], "\n".join(lines))
        for line in re.findall(r"^<stdin>:(\d+):\d+: warning: invalid instruction encoding", told, re.MULTILINE):
            word = list(words)[int(line) - 1]
            for address in words[word]:
                yield address, f"{int.from_bytes(word, 'little'):08x}"


def _llvm_mc(features: Sequence[str], text: str) -> str:
    """What LLVM says about bytes that are no instructions of a generic AArch64 CPU with these features."""
    words = ["--disassemble", "--triple=aarch64", "--mcpu=generic", *features]
    if found := shutil.which("llvm-mc"):
        return subprocess.run([found, *words], input=text, capture_output=True, text=True, check=True).stderr
    return run_tool(llvm(print), "llvm-mc", words, text).stderr


def _on_x86(library: Path, pieces: Pieces) -> Iterator[tuple[int, str]]:
    listing = subprocess.run(["objdump", "-d", "-w", library], capture_output=True, text=True, check=True).stdout
    for address, encoded, text in INSTRUCTION.findall(listing):
        beyond = beyond_x86(bytes.fromhex(encoded), text)
        if beyond and beyond not in pieces.allowed_at(int(address, 16)):
            yield int(address, 16), f"{text.split('#')[0].strip()} ({beyond})"


def beyond_x86(encoded: bytes, text: str) -> str:
    """What an instruction is part of that x86-64's baseline, with SSE2, has not; "" if it is of the baseline."""
    opcode = encoded.lstrip(PREFIXES)
    # Words before the mnemonic, such as `lock` and `rep`, are never its own.
    if BMI.intersection(text.split(maxsplit=1)[:1]):
        return "BMI"
    if opcode[:1] in (b"\xc4", b"\xc5") or (opcode[:1] == b"\x8f" and opcode[1] & 0x38):
        return "VEX"
    if opcode[:1] == b"\x62":
        return "EVEX"
    if opcode[:1] and opcode[0] & 0xF0 == 0x40:
        opcode = opcode[1:]
    later = opcode[:2] in (b"\x0f\x38", b"\x0f\x3a") or LATER_X86.intersection(text.split()[:2])
    return "SSE3 or later" if later else ""
