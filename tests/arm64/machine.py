"""An AArch64 machine on x86-64 Linux: a Debian root file system under QEMU, and the project built for it.

No root rights are needed and nothing is registered with the kernel: `Machine.python(cpu)` is an x86 shell script that
starts the emulator. The emulated Python takes that script for its own executable, so
`subprocess.run([sys.executable, ...])`, `multiprocessing` and the children of torch.compile are emulated too, on the
same CPU model. Other programs that a test starts are this machine's, except the compilers, which are cross compilers.
"""

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cache import Report, cache_folder, key
from commands import Unavailable
from emulator_piece import emulator
from pieces import SITE_PACKAGES, compiler, root_file_system
from project import TOOLCHAIN, BuildError, build, build_library, stage
from scripts import write_python, write_script, write_tools
from wheels import PYTHON

__all__ = ["CPUS", "CPU_VARIABLE", "BuildError", "Machine", "Unavailable", "built_machine"]

CHECKOUT = Path(__file__).resolve().parents[2]

# No dotprod; dotprod; i8mm and SVE; all that QEMU has. torch 2.10's wheel needs the atomic instructions of Armv8.1 as
# soon as it is loaded, so cortex-a72 cannot run it: a64fx is QEMU's one model with those and without dotprod.
CPUS = ("a64fx", "neoverse-n1", "neoverse-v1", "max")

# Emulating pointer authentication slows down every call, by a fifth; what is compiled does not need it.
QEMU_MODELS = {"neoverse-v1": "neoverse-v1,pauth=off", "max": "max,pauth=off"}

# What `-march=native` means on each model, in words that GCC 12 knows.
NATIVE = {
    "a64fx": "armv8.2-a+fp16+sve",
    "neoverse-n1": "armv8.2-a+fp16+rcpc+dotprod",
    "neoverse-v1": "armv8.4-a+fp16+bf16+i8mm+rng+sve",
    "max": "armv8.6-a+fp16+rng+sve2",
}

# Every emulated process has the name of its CPU model here, for tests that expect features of it.
CPU_VARIABLE = "AO_ARM_EMULATED_CPU"

ENVIRONMENT = dict(os.environ)
# Variables about this machine's programs and libraries, or about the pytest that starts the emulated one.
FOREIGN_PREFIXES = ("LD_", "PYTHON", "PYTEST_", "VIRTUAL_ENV", "TORCHINDUCTOR_", "QEMU_", "CMAKE_")
FOREIGN_NAMES = frozenset({"CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"})


class Machine:
    """The emulated machine; making one downloads what is not yet in the cache, or raises `Unavailable`."""

    def __init__(self, report: Report = print, checkout: Path = CHECKOUT) -> None:
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise Unavailable(f"this is {sys.platform} on {platform.machine()}, not Linux on x86_64")
        self.compiler = compiler(report)
        self.emulator = emulator(report) / "qemu-aarch64"
        self.root = root_file_system(report)
        self._report = report
        self._checkout = checkout
        self._built: Path | None = None
        self._tree = Path()
        self._write_scripts()

    def python(self, cpu: str) -> Path:
        """The emulated Python on a CPU model; it can be started like any program."""
        if cpu not in CPUS:
            raise ValueError(f"there is no CPU model {cpu!r} here; there are {', '.join(CPUS)}")
        return self.root / f"usr/bin/python{PYTHON}-{cpu}"

    def tools(self, cpu: str | None = None) -> Path:
        """The folder of the cross compiler's programs, as they are on a CPU model or for building for any."""
        return self.root / "tools" / (cpu or "any")

    def _write_scripts(self) -> None:
        write_tools(self.tools(), compiler=self.compiler)
        for cpu in CPUS:
            write_python(
                self.python(cpu),
                interpreter=self.root / f"usr/bin/python{PYTHON}",
                emulator=self.emulator,
                root=self.root,
                model=QEMU_MODELS.get(cpu, cpu),
            )
            write_tools(self.tools(cpu), compiler=self.compiler, include=self.root / "sdk/include", native=NATIVE[cpu])
            for name in ("python", "python3", f"python{PYTHON}"):
                write_script(self.tools(cpu) / name, f'exec "{self.python(cpu)}" "$@"')

    def build(self) -> Path:
        """Build the project and stage it: the folder to run in, which holds the package and the tests.

        The first call builds; later ones return the same folder, whatever was edited since.
        """
        if self._built is None:
            self._built, self._tree = self._build(self.definitions())
        return self._built

    def build_alone(self) -> Path:
        """The same without Arm Compute Library and KleidiAI: a folder to use as PYTHONPATH."""
        return self._build(self.definitions(libraries=False))[0]

    def definitions(self, libraries: bool = True) -> dict[str, Path]:
        """What CMake is told besides the name of the toolchain's file."""
        sdk = self.root / "sdk"
        return {
            "AO_ARM_CROSS_TOOLS": self.tools(),
            "AO_ARM_TORCH_DIR": self.root / SITE_PACKAGES / "torch",
            **({"ACL_ROOT_DIR": sdk, "KLEIDIAI_ROOT_DIR": sdk} if libraries else {}),
        }

    def _build(self, definitions: Mapping[str, Path]) -> tuple[Path, Path]:
        library, tree = build_library(
            self._checkout, definitions=definitions, env=clean_environment(), report=self._report
        )
        return stage(self._checkout, library, self._report), tree

    def run_kernel_test(self, model: str) -> subprocess.CompletedProcess[str]:
        """Run the kernels' own test program, which needs no torch, on any of QEMU's CPU models."""
        self.build()
        return self.run_program(model, self._tree / "kernel_test")

    def build_programs(self, targets: Sequence[str], flags: str = "") -> Path:
        """Build programs of `csrc/` that need no torch, with more compiler flags; returns the folder that has them."""
        return build(
            self._checkout,
            settings={
                "CMAKE_TOOLCHAIN_FILE": TOOLCHAIN,
                **self.definitions(),
                "CMAKE_CXX_FLAGS": flags,
            },
            targets=targets,
            env=clean_environment(),
            report=self._report,
            what=f"arm64: building {', '.join(targets)}",
        )

    def run_program(
        self, model: str, program: Path, args: Sequence[str | Path] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that was built here on any of QEMU's CPU models; both outputs are in `stdout`."""
        cpu = QEMU_MODELS.get(model, model)
        command: list[str | Path] = [self.emulator, "-cpu", cpu, "-L", self.root, program, *args]
        return subprocess.run(
            command,
            env={**clean_environment(), **(env or {})},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def environment(self, cpu: str) -> dict[str, str]:
        """The environment of an emulated process."""
        tools = self.tools(cpu)
        compiled = key({"compiler": self.compiler.name, "root": self.root.name, "native": NATIVE})
        return {
            **clean_environment(),
            CPU_VARIABLE: cpu,
            "PATH": os.pathsep.join((str(tools), os.environ.get("PATH", os.defpath))),
            "CC": str(tools / "gcc"),
            "CXX": str(tools / "g++"),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "2",
            # Threads that spin while they wait would take the time of those that work.
            "OMP_WAIT_POLICY": "passive",
            # A pool of compiling processes would import torch in each of them, which takes some ten seconds here.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            # Compiled C++ is kept, found by its source. Compiled graphs are not: their keys do not cover our passes.
            "TORCHINDUCTOR_CACHE_DIR": str(cache_folder() / f"inductor-{compiled}" / cpu),
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
            "TORCHINDUCTOR_AUTOGRAD_CACHE": "0",
        }

    @contextmanager
    def start(
        self,
        cpu: str,
        args: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = subprocess.PIPE,
    ) -> Iterator[subprocess.Popen[str]]:
        """Start the emulated Python with `args`, both outputs in one stream; it is ended on leaving.

        It runs in the staged copy of the checkout unless `cwd` says otherwise, with that copy as PYTHONPATH unless
        `env` has another.
        """
        command = [str(self.python(cpu)), *(str(arg) for arg in args)]
        environment = {**self.environment(cpu), **(env or {})}
        if cwd is None or "PYTHONPATH" not in environment:
            staged = self.build()
            cwd = cwd or staged
            environment.setdefault("PYTHONPATH", str(staged))
        with subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdin=None if stdout is None else stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT if stdout is not None else None,
            text=True,
            errors="replace",
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def run(
        self,
        cpu: str,
        args: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the emulated Python with `args` to its end; both outputs are in `stdout`."""
        with self.start(cpu, args, env, cwd) as process:
            output, _ = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, "")


_preparing = threading.Lock()
_built: list[Machine] = []


def built_machine(report: Report) -> Machine:
    """The machine with this checkout built for it, made by the first of the threads that ask."""
    with _preparing:
        if not _built:
            machine = Machine(report)
            machine.build()
            _built.append(machine)
    return _built[0]


def clean_environment() -> dict[str, str]:
    """This process's environment, as it was before any test changed it, without what is about x86 programs."""
    return {
        name: value
        for name, value in ENVIRONMENT.items()
        if not name.startswith(FOREIGN_PREFIXES) and name not in FOREIGN_NAMES
    }
