"""The x86 shell scripts that stand for programs of the emulated machine: its Python and its compilers."""

import os
import shlex
import tempfile
from pathlib import Path

TOOLS = ("ar", "as", "g++", "gcc", "ld", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip")
COMPILERS = ("g++", "gcc")
# Of translated code. What a suite runs is more than the emulator's own 128 MiB, which it would empty and fill again.
CODE_BYTES = 1 << 30


def write_script(path: Path, *lines: str) -> None:
    """Write an executable shell script; one that is in use is replaced, not rewritten."""
    text = "\n".join(("#!/bin/sh", *lines)) + "\n"
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(part, 0o755)
    os.replace(part, path)


def write_python(path: Path, *, interpreter: Path, emulator: Path, root: Path, model: str) -> None:
    """The emulated Python as a program that this machine can start.

    It is also what the emulated Python takes for its own executable (`-0`), so that a child started by
    `sys.executable` is emulated too. It must be in the folder of the real one, from which Python finds its library.
    """
    words = [emulator, "-tb-size", CODE_BYTES, "-cpu", model, "-L", root]
    quoted = " ".join(shlex.quote(str(word)) for word in words)
    write_script(path, f'exec {quoted} -0 "$0" {shlex.quote(str(interpreter))} "$@"')


def write_tools(folder: Path, *, compiler: Path, include: Path | None = None, native: str = "") -> None:
    """The cross compiler's programs under their native names.

    For torch.compile, `include` is searched as a system folder and `native` is what `-march=native` shall mean.
    """
    libraries = f"export LD_LIBRARY_PATH={shlex.quote(str(compiler / 'usr/lib/x86_64-linux-gnu'))}"
    for name in TOOLS:
        program = shlex.quote(str(compiler / f"usr/bin/aarch64-linux-gnu-{name}"))
        lines = [libraries]
        if name in COMPILERS:
            # libc.so is a linker script of absolute paths, which are right only below the system root.
            program += f" --sysroot={shlex.quote(str(compiler))}"
            if include:
                program += f" -isystem {shlex.quote(str(include))}"
            if native:
                lines += [
                    "for word do",
                    "    shift",
                    # GCC 12 crashes on what its precompiled headers make of SVE types. Without, the text is read.
                    '    [ "$word" = c++-header ] && exit 0',
                    f'    [ "$word" = -march=native ] && word=-march={native}',
                    '    set -- "$@" "$word"',
                    "done",
                ]
        write_script(folder / name, *lines, f'exec {program} "$@"')
    for name, target in (("c++", "g++"), ("cc", "gcc")):
        write_script(folder / name, f'exec "${{0%/*}}/{target}" "$@"')
