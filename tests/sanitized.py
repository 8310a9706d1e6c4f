"""Runs the tests with what GCC's sanitizers compile into the library: `python tests/sanitized.py [SUBJECT...] [--all]`.

    python     the Python tests, with the library under AddressSanitizer and UndefinedBehaviorSanitizer: the quick ones
               in pairs, or --all of x86
    emulated   kernel_test under these two, but for checks of each pointer, on an emulated AArch64 CPU
    races      kernel_test under ThreadSanitizer, then tests of threads with the library under it
    kernels    kernel_test under the first two, and with a check for leaks

Without a subject all but `emulated`, whose build takes many minutes. torch and Python are not instrumented: what is
found is about ao_arm's own code.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).with_name("arm64")))

from cache import cache_folder
from commands import Unavailable, call
from instrumented import MEMORY, RACES, build_here
from machine import CHECKOUT, Machine, clean_environment
from project import LIBRARY, BuildError
from scripts import write_script

CPU = "neoverse-v1"  # of the emulated ones the one with most kernels
#: Callers in threads of Python's: what is found out about a shape by all at once, and packing. Those that also use
#: torch's own threads are left out: OpenMP's barriers are not seen, and take very long here.
THREADS = (
    "tests/test_threads.py::test_threads_whose_first_call_of_a_shape_is_at_once",
    "tests/test_threads.py::test_threads_that_pack_and_unpack",
)

ASAN_OPTIONS = {
    # Python and torch keep what they hold to the end.
    "detect_leaks": "0",
    # Python was linked without the runtime, which is preloaded.
    "verify_asan_link_order": "0",
    # Where there is no memory is told by an error, as without the sanitizer.
    "allocator_may_return_null": "1",
    "abort_on_error": "1",
}
UBSAN_OPTIONS = {"print_stacktrace": "1", "abort_on_error": "1"}
TSAN_OPTIONS = {
    "exitcode": "66",
    # Only what instrumented code does is judged.
    "ignore_noninstrumented_modules": "1",
}
#: Tests that do not run under AddressSanitizer. It keeps what was freed, so that how much memory is held says nothing;
#: where address space is limited it ends the process, for want of its own; and a child of a fork may wait for its
#: allocator for ever, if another thread was in it: GCC 12's knows no forks.
LEFT_OUT = tuple(
    f"tests/test_soak.py::test_{name}"
    for name in (
        "many_callers_share_layers",
        "many_calls_keep_no_memory",
        "forks_after_threads_were_used",
        "no_memory_is_an_error_of_python",
        "a_child_that_is_ended_by_a_signal_is_found",
    )
)
#: Folders and files of tests that call no op as others do not: builds and emulation, and kernels of Jupyter.
OTHER_TESTS = ("arm64", "csrc", "test_tutorials.py")
#: Seconds after which a test that still runs hangs: where it does is printed, and all ends. Others take half a minute.
HANGING = 1800
#: Subjects that run at the same time, and parts of the Python tests.
AT_ONCE = min(2, os.cpu_count() or 1)
#: Many more than run at the same time, as some take longer.
PARTS = 8
report = partial(print, flush=True)


def options(given: dict[str, str]) -> str:
    return ":".join(f"{name}={value}" for name, value in given.items())


def run(command: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    """Run a program to its end, in the checkout, and print what it said: in one piece, as others run beside it.

    What it may leave running is not waited for.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    environment = {**clean_environment(), **(env or {})}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        output.seek(0)
        report(output.read())
    done.check_returncode()


def preloaded(*libraries: str) -> str:
    """The compiler's runtime libraries, as LD_PRELOAD takes them."""
    return " ".join(call(("c++", f"-print-file-name={name}")).strip() for name in libraries)


def memory_environment(library: Path) -> dict[str, str]:
    """What a Python needs to load a library with the first two sanitizers, in the place of the installed one."""
    # What torch.compile starts is a program of its own, which only gets slower.
    compiler = cache_folder() / "compiler-without-sanitizers"
    write_script(compiler, 'unset LD_PRELOAD; exec c++ "$@"')
    return {
        "AO_ARM_LIBRARY": str(library),
        "CXX": str(compiler),
        "LD_PRELOAD": preloaded("libasan.so", "libubsan.so", "libstdc++.so"),
        "ASAN_OPTIONS": options(ASAN_OPTIONS),
        "UBSAN_OPTIONS": options(UBSAN_OPTIONS),
    }


def run_pytest(arguments: Sequence[str], env: dict[str, str], wrapper: Sequence[str] = ()) -> None:
    settings = {"faulthandler_timeout": HANGING, "faulthandler_exit_on_timeout": True}
    words = [f"--override-ini={name}={value}" for name, value in settings.items()]
    run([*wrapper, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, *arguments], env)


def kernels(_: bool) -> None:
    tree = build_here(["kernel_test"], MEMORY, report)
    run([tree / "kernel_test"], {"UBSAN_OPTIONS": options(UBSAN_OPTIONS)})


def races(_: bool) -> None:
    tree = build_here(["kernel_test", "ao_arm"], RACES, report)
    # Without `setarch -R` the kernel may put what ThreadSanitizer's memory map leaves no room for.
    without_randomness = ["setarch", "-R"]
    run([*without_randomness, tree / "kernel_test"], {"TSAN_OPTIONS": options(TSAN_OPTIONS)})
    env = {
        "AO_ARM_LIBRARY": str(tree / LIBRARY),
        "LD_PRELOAD": preloaded("libtsan.so"),
        "TSAN_OPTIONS": options(TSAN_OPTIONS),
    }
    run_pytest(THREADS, env, without_randomness)


def emulated(_: bool) -> None:
    machine = Machine(report)
    # Checks of each pointer make the micro-kernels take many minutes to compile, and guard pages are there as well.
    flags = f"{MEMORY} -fno-sanitize=null,alignment,object-size,pointer-overflow -static-libasan -static-libubsan"
    tree = machine.build_programs(["kernel_test"], flags)
    # Leaks are looked for by a process that traces this one, which the emulator does not offer.
    env = {"ASAN_OPTIONS": options({"detect_leaks": "0"}), "UBSAN_OPTIONS": options(UBSAN_OPTIONS)}
    done = machine.run_program(CPU, tree / "kernel_test", env=env)
    report(done.stdout)
    done.check_returncode()


def python(everything: bool) -> None:
    tree = build_here(["ao_arm"], MEMORY, report)
    # Whatever is emulated or runs beside runs without the sanitizers.
    chosen = ["-m", "not beside"] if everything else ["-m", "quick", "--pairs"]
    env = memory_environment(tree / LIBRARY)
    left_out = [f"--deselect={test}" for test in LEFT_OUT]
    paths = sorted(Path(__file__).parent.rglob("test_*.py"))
    files = [path for path in paths if not {path.parent.name, path.name} & {*OTHER_TESTS}]

    def run_part(part: int) -> None:
        run_pytest([*files[part::PARTS], *left_out, *chosen], env)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(run_part, range(PARTS)):
            pass


#: By themselves, as their builds take longer than the others.
NAMED_ONLY = ("emulated",)
#: The longest first.
SUBJECTS: dict[str, Callable[[bool], None]] = {
    "python": python,
    "emulated": emulated,
    "races": races,
    "kernels": kernels,
}


def command(text: str, subjects: Mapping[str, object]) -> argparse.ArgumentParser:
    """The command line of a program that runs some of these subjects, which its docstring tells of."""
    description, _, epilog = text.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(subjects)} (default: see below)")
    return parser


def run_subjects(
    parser: argparse.ArgumentParser, names: Sequence[str], subjects: Mapping[str, Callable[[], None]]
) -> int:
    """Run these, or all but NAMED_ONLY, two at a time; tells how each ended, and returns 1 if one failed."""
    if unknown := {*names} - {*subjects}:
        parser.error(f"there is no subject {', '.join(sorted(unknown))}; there are {', '.join(subjects)}")
    begun, before = time.monotonic(), os.times()

    def outcome(name: str) -> bool:
        started = time.monotonic()
        try:
            subjects[name]()
        except (AssertionError, BuildError, Unavailable, subprocess.CalledProcessError) as error:
            report(f"{parser.prog}: {name} FAILED: {error}")
            return False
        report(f"{parser.prog}: {name} passed in {time.monotonic() - started:.0f} s")
        return True

    with ThreadPoolExecutor(AT_ONCE) as pool:
        passed = [*pool.map(outcome, names or [name for name in subjects if name not in NAMED_ONLY])]
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    report(f"{parser.prog}: {time.monotonic() - begun:.0f} s in all, {cpu:.0f} s of CPU time")
    return 0 if all(passed) else 1


def main() -> int:
    """Run the subjects asked for; returns 1 if one of them fails."""
    parser = command(__doc__ or "", SUBJECTS)
    parser.add_argument("--all", action="store_true", help="all tests of x86 instead of those that CI has time for")
    given = parser.parse_args()
    return run_subjects(
        parser, given.subjects, {name: partial(subject, given.all) for name, subject in SUBJECTS.items()}
    )


if __name__ == "__main__":
    sys.exit(main())
