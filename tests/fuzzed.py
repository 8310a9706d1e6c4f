"""Fuzzes the library: `python tests/fuzzed.py [SUBJECT...] [--seconds 60]`.

    weight   packed weights that somebody made up or changed, by libFuzzer
    layer    layers of all kinds, on which all kernels of this CPU and any number of threads have to agree, by libFuzzer
    ops      calls of every op with arguments that somebody made up, by hypothesis
    arm64    what the first two found and as many random inputs again on emulated CPUs: the digests have to be x86's

Without a subject all of them, each but the last for so many seconds. All of x86 runs under AddressSanitizer and
UndefinedBehaviorSanitizer. Searches begin with `tests/fuzz_inputs/*.txt`, an input in each line, and some of what
earlier ones found, all of which is kept in the cache. An input that fails is written there too, and its path is
printed.
"""

import hashlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).with_name("arm64")))

import sanitized
from cache import cache_folder
from clang_piece import clang_environment, clang_settings
from instrumented import MEMORY, build_here
from machine import CPUS, Machine
from project import LIBRARY

INPUTS = Path(__file__).with_name("fuzz_inputs")
#: The longest inputs that are made up.
LONGEST = {"weight": 400, "layer": 48}
RANDOM_INPUTS = 300
#: Of what was found before: a search reads all that it begins with first, and emulation takes its time.
MOST_FOUND = 300
#: One of each kind; `max` would show nothing new.
EMULATED = tuple(cpu for cpu in CPUS if cpu != "max")

report = partial(print, flush=True)


def found(subject: str) -> Path:
    """The folder of what searches found, for later ones."""
    folder = cache_folder().parent / "fuzz" / subject
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_inputs(folder: Path, inputs: Iterable[bytes]) -> None:
    """Writes each into a file that is named after it."""
    for content in inputs:
        (folder / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)


def checked_in(subject: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in (INPUTS / f"{subject}.txt").read_text().split()]


def fuzzers() -> Path:
    flags = f"{MEMORY} -fsanitize=fuzzer-no-link"
    targets = [f"{kind}_{subject}" for kind in ("fuzz", "replay") for subject in LONGEST]
    settings = {**clang_settings(report), "AO_ARM_BUILD_FUZZERS": "ON"}
    return build_here(targets, flags, report, settings, clang_environment(report))


def some_found(subject: str, chance: random.Random) -> list[bytes]:
    paths = sorted(found(subject).iterdir())
    return [path.read_bytes() for path in chance.sample(paths, min(MOST_FOUND, len(paths)))]


def search(subject: str, seconds: int) -> None:
    tree = fuzzers()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as new:
        write_inputs(Path(folder), checked_in(subject) + some_found(subject, random.Random()))
        failing = cache_folder().parent / "fuzz" / f"{subject}-failing-"
        options = {
            "max_total_time": seconds,
            "max_len": LONGEST[subject],
            "len_control": 0,  # long inputs at once: they are no worse than short ones
            "print_final_stats": 1,
            "verbosity": 0,
            "artifact_prefix": failing,
        }
        words = [f"-{name}={value}" for name, value in options.items()]
        try:
            sanitized.run([tree / f"fuzz_{subject}", *words, new, folder])
        finally:
            write_inputs(found(subject), (path.read_bytes() for path in Path(new).iterdir()))


def ops(seconds: int) -> None:
    tree = build_here(["ao_arm"], MEMORY, report)
    env = sanitized.memory_environment(tree / LIBRARY)
    sanitized.run([sys.executable, Path(__file__).with_name("fuzzed_ops.py"), str(seconds)], env)


def digests(text: str) -> dict[str, str]:
    """Each input's, by its name."""
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{16}) (\w+)$", text, re.MULTILINE)}


def arm64(_: int) -> None:
    machine = Machine(report)
    here = fuzzers()
    there = machine.build_programs([f"replay_{subject}" for subject in LONGEST])
    for subject, longest in LONGEST.items():
        with tempfile.TemporaryDirectory() as folder:
            chance = random.Random(subject)
            write_inputs(Path(folder), checked_in(subject))
            write_inputs(Path(folder), some_found(subject, chance))
            write_inputs(Path(folder), (chance.randbytes(chance.randint(1, longest)) for _ in range(RANDOM_INPUTS)))
            program = f"replay_{subject}"
            done = subprocess.run([here / program, folder], text=True, capture_output=True)
            done.check_returncode()
            expected = digests(done.stdout)
            if len(expected) != len([*Path(folder).iterdir()]):
                raise AssertionError(f"{program} judged {len(expected)} inputs, not all")
            for cpu in EMULATED:
                begun = time.monotonic()
                emulated = machine.run_program(cpu, there / program, [folder])
                if emulated.returncode:
                    print(emulated.stdout[-4000:])
                emulated.check_returncode()
                given = digests(emulated.stdout)
                if differing := [name for name in expected if given.get(name) != expected[name]]:
                    kept = cache_folder().parent / "fuzz" / f"{subject}-failing-{differing[0]}"
                    kept.write_bytes((Path(folder) / differing[0]).read_bytes())
                    raise AssertionError(f"{len(differing)} inputs give something else on {cpu}, such as {kept}")
                report(f"{subject}: {len(given)} inputs as on x86 on {cpu} ({time.monotonic() - begun:.0f} s)")


SUBJECTS: dict[str, Callable[[int], None]] = {
    "weight": partial(search, "weight"),
    "layer": partial(search, "layer"),
    "ops": ops,
    "arm64": arm64,
}


def main() -> int:
    """Fuzz the subjects asked for; returns 1 if something was found."""
    parser = sanitized.command(__doc__ or "", SUBJECTS)
    parser.add_argument("--seconds", type=int, default=60, help="of each search (default: %(default)s)")
    given = parser.parse_args()
    subjects = {name: partial(fuzz, given.seconds) for name, fuzz in SUBJECTS.items()}
    return sanitized.run_subjects(parser, given.subjects, subjects)


if __name__ == "__main__":
    sys.exit(main())
