"""Objects that were compiled once are taken again, and only for the same source and options."""

import shutil
import subprocess
import sys
from pathlib import Path

import kept_objects
import pytest

COMPILER = shutil.which("c++")
pytestmark = [
    pytest.mark.x86,
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the objects, for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return kept_objects.folder()


def compiled(checkout: Path, *options: str, value: int = 1, body: str = "") -> tuple[bytes, str]:
    """The object, and what the compiler said."""
    (checkout / "include").mkdir(parents=True, exist_ok=True)
    (checkout / "include/value.h").write_text(f"#define VALUE {value}\n")
    (checkout / "source.cpp").write_text(f'#include "value.h"\nint value() {{ {body} return VALUE; }}\n')
    output, dependencies = checkout / "source.o", checkout / "source.d"
    command = [str(COMPILER), f"-I{checkout / 'include'}", *options, "-MD", "-MT", str(output), "-MF"]
    command += [str(dependencies), "-o", str(output), "-c", str(checkout / "source.cpp")]
    launcher = kept_objects.launcher().split(";")
    done = subprocess.run([*launcher, *command], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert str(checkout / "include/value.h") in dependencies.read_text()
    return output.read_bytes(), done.stderr


def test_other_checkouts_take_what_there_is(tmp_path: Path, kept: Path) -> None:
    first = compiled(tmp_path / "one")
    (only,) = kept.glob("*.o")
    only.write_bytes(b"taken")
    assert first[0] != b"taken"
    assert compiled(tmp_path / "two") == (b"taken", "")


def test_another_header_or_option_is_compiled(tmp_path: Path, kept: Path) -> None:
    objects = {compiled(tmp_path)[0], compiled(tmp_path, value=2)[0], compiled(tmp_path, "-O2")[0]}
    assert len(objects) == len([*kept.glob("*.o")]) == 3
    assert compiled(tmp_path, "-DVALUE_OF_NOTHING=1")[0] in objects


def test_warnings_are_said_each_time(tmp_path: Path, kept: Path) -> None:
    for _ in range(2):
        assert "unused" in compiled(tmp_path, "-Wall", body="int unused;")[1]
    assert not [*kept.iterdir()]


def test_errors_are_the_compiler_s(tmp_path: Path, kept: Path) -> None:
    (tmp_path / "wrong.cpp").write_text("int value() { return what; }\n")
    launcher = kept_objects.launcher().split(";")
    command = [*launcher, str(COMPILER), "-o", str(tmp_path / "wrong.o"), "-c", str(tmp_path / "wrong.cpp")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0 and "what" in done.stderr
    assert not [*kept.iterdir()]
    assert launcher[0] == sys.executable
