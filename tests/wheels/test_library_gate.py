"""The gate passes a library as ours is built, and names each rule that one breaks."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from library_gate import violations

pytestmark = [
    pytest.mark.x86,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for x86-64's instruction sets"),
]

EXPORTS = Path(__file__).resolve().parents[2] / "csrc/exports.map"
LINKED = (f"-Wl,--version-script={EXPORTS}", "-Wl,-z,relro,-z,now,-z,noexecstack")

BASELINE = "CMakeFiles/ao_arm_baseline.dir/a.o"
AVX2 = "CMakeFiles/ao_arm_avx2.dir/a.o"
AVX512 = "CMakeFiles/ao_arm_avx512.dir/a.o"

CALLS_TORCH = """
#include <cmath>
#include <string>
extern "C" void aoti_torch_delete_tensor_object(void*);
std::string ours(double value) {
    aoti_torch_delete_tensor_object(nullptr);
    return std::to_string(std::pow(value, 3.5));
}
"""
# Becomes vector instructions of what it is compiled for.
LOOP = "void loop(float* a, const float* b, long n) { for (long i = 0; i < n; ++i) a[i] += b[i] * 3; }"
AT_LOADING = """
extern "C" double sqrt(double);
struct Table { float a[64]; Table(const int* from) { for (int i = 0; i < 64; ++i) a[i] = from[i] * 0.5f; } };
extern const int numbers[64];
const int numbers[64] = {};
const int* volatile chosen = numbers;
Table table(chosen);
"""
SSE4 = "int any(const int* a) { int s = 0; for (int i = 0; i < 64; ++i) s += a[i] * a[i + 1]; return s; }"


def shared_loop(namespace: str) -> str:
    """A template's function: each object that uses it brings it."""
    instance = "template void loop<1>(float*, const float*, long);"
    return f"namespace {namespace} {{ template <int> {LOOP} {instance} }}"


Sources = Mapping[str, tuple[str, Sequence[str]]]


def judged(folder: Path, sources: Sources, linked: Sequence[str] = LINKED, compiler: str | Path = "g++") -> list[str]:
    """What the gate says of a library: of objects, each by its source and options, linked with these options."""
    for name, (source, options) in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".cpp").write_text(source)
        compile = [compiler, "-O3", "-std=c++17", "-fPIC", "-ffunction-sections", "-c", *options]
        subprocess.run([*compile, "-o", path, path.with_suffix(".cpp")], check=True)
    link = [compiler, "-shared", "-Wl,-Map=map", *linked, "-o", "library.so", *sources]
    subprocess.run(link, cwd=folder, check=True, capture_output=True)
    return violations(folder / "library.so", folder / "map", folder)


def test_a_library_as_ours_passes(tmp_path: Path) -> None:
    sources = {
        BASELINE: (CALLS_TORCH + LOOP, ()),
        AVX2: (shared_loop("isa_avx2") + SSE4, ("-mavx2", "-mfma")),
        AVX512: (shared_loop("isa_avx512"), ("-mavx512f", "-mprefer-vector-width=512")),
    }
    assert judged(tmp_path, sources) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LINKED[1:], "it exports _Z4ours"),
        ((*LINKED, "-Wl,-z,norelro"), "what is relocated stays writable: link with -z relro"),
        ((*LINKED, "-Wl,-z,lazy"), "functions are bound when they are first called"),
        ((*LINKED, "-Wl,-z,execstack"), "the stack is executable"),
        ((*LINKED, "-Wl,-rpath,/opt/lib", "-Wl,--disable-new-dtags"), "it has a RPATH"),
        ((*LINKED, "-Wl,-rpath,/opt/lib", "-Wl,--enable-new-dtags"), "it has a RUNPATH"),
        ((*LINKED, "-Wl,--no-as-needed", "-ldl", "-lresolv"), "it needs libresolv.so.2"),
    ],
)
def test_what_the_linker_was_told_wrong_is_named(options: Sequence[str], expected: str, tmp_path: Path) -> None:
    found = judged(tmp_path, {BASELINE: (CALLS_TORCH, ())}, options)
    assert [violation for violation in found if violation.startswith(expected)], found


@pytest.mark.parametrize(
    "name", ["_ZN2at6matmulERKNS_6TensorES2_", "torch_but_nothing_stable", "PyErr_Clear", "arm_compute_version"]
)
def test_a_function_that_is_not_of_the_stable_abi_is_named(name: str, tmp_path: Path) -> None:
    (found,) = judged(tmp_path, {BASELINE: (f'extern "C" void {name}(); void ours() {{ {name}(); }}', ())})
    assert found.startswith(f"it takes {name} from no library by name")


@pytest.mark.parametrize(
    ("place", "source", "options", "example"),
    [
        (BASELINE, LOOP, "-mavx2", "(VEX)"),
        (BASELINE, SSE4, "-msse4.1", "(SSE3 or later)"),
        (BASELINE, "int count(long a) { return __builtin_popcountl(a); }", "-mpopcnt", "popcnt"),
        (AVX2, LOOP, "-mavx512f -mprefer-vector-width=512", "(EVEX)"),
        (AVX2, "long rest(long a, long b) { return a & ~b; }", "-mbmi", "(BMI)"),
        # The linker takes one of the objects' copies for all, and runs what initializes variables on any CPU.
        (AVX2, shared_loop("common"), "-mavx2", "(VEX)"),
        (AVX512, AT_LOADING, "-mavx512f", "EX)"),
    ],
)
def test_an_instruction_that_not_every_cpu_has_is_named(
    place: str, source: str, options: str, example: str, tmp_path: Path
) -> None:
    (found,) = judged(tmp_path, {place: (source, options.split())})
    assert found.partition(" may be run by any CPU but has ")[0].endswith(f" of {place}")
    assert example in found


def test_the_map_of_another_library_is_refused(tmp_path: Path) -> None:
    for name, source in (("one", CALLS_TORCH), ("another", LOOP)):
        assert judged(tmp_path / name, {BASELINE: (source, ())}) == []
    found = violations(tmp_path / "one/library.so", tmp_path / "another/map", tmp_path)
    assert found == ["map is the map of another library: its code is of another size"]
