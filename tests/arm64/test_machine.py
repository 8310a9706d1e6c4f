"""What tests that run on the emulated machine rely on."""

import pytest
from machine import CPU_VARIABLE, CPUS, Machine

# A child gets an empty environment, to show that being emulated does not hang on variables.
CHILD = """
import os, platform, subprocess, sys
print(os.environ["{variable}"], platform.machine())
code = "import platform, sys; print(platform.machine(), sys.executable)"
print(subprocess.run([sys.executable, "-c", code], env={{}}, capture_output=True, text=True).stdout, end="")
"""

COMPILER = """
import ctypes, os, subprocess
open("{folder}/answer.cpp", "w").write('extern "C" int answer() {{ return __ARM_FEATURE_ATOMICS + 41; }}')
command = [os.environ["CXX"], "-march=native", "-shared", "-fPIC", "-o", "{folder}/answer.so", "{folder}/answer.cpp"]
subprocess.run(command, check=True)
print(ctypes.CDLL("{folder}/answer.so").answer())
"""


@pytest.mark.parametrize("cpu", CPUS)
def test_a_child_python_is_emulated(machine: Machine, cpu: str) -> None:
    done = machine.run(cpu, ["-c", CHILD.format(variable=CPU_VARIABLE)])
    assert done.stdout == f"{cpu} aarch64\naarch64 {machine.python(cpu)}\n"


@pytest.mark.parametrize("cpu", CPUS)
def test_the_compiler_builds_what_the_cpu_model_runs(machine: Machine, cpu: str, tmp_path: object) -> None:
    done = machine.run(cpu, ["-c", COMPILER.format(folder=tmp_path)])
    assert done.stdout == "42\n"


def test_the_package_is_the_staged_one(machine: Machine) -> None:
    code = "import importlib.util; print(importlib.util.find_spec('ao_arm').origin)"
    assert machine.run(CPUS[0], ["-c", code]).stdout.strip() == str(machine.build() / "ao_arm/__init__.py")


def test_an_unknown_cpu_model_is_refused(machine: Machine) -> None:
    with pytest.raises(ValueError, match="there is no CPU model 'cortex-a72' here; there are a64fx"):
        machine.run("cortex-a72", ["-c", ""])
