"""A compiler launcher for builds of the tests: what was compiled once is taken again, in any checkout and build folder.

`kept_objects.py COMPILER ARGS...` keeps each object under a hash of the preprocessed source, the options and the
compiler's version, below `${XDG_CACHE_HOME:-~/.cache}/ao_arm/objects`, which may be deleted at any time.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Objects that nothing asked for in this time are removed.
KEPT_SECONDS = 14 * 24 * 3600

#: Options whose next word says where something is or goes, and options about the file of dependencies.
PATHS_FOLLOW = ("-o", "-I", "-isystem", "-MF", "-MT", "-MQ")
NOT_OF_THE_OBJECT = ("-I", "-isystem", "-MD", "-MMD", "-c")
SOURCES = (".c", ".cc", ".cpp")


def folder() -> Path:
    """Where the objects are; made when missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made = Path(base).resolve() / "ao_arm" / "objects"
    made.mkdir(parents=True, exist_ok=True)
    return made


def launcher() -> str:
    """What CMake takes as CMAKE_CXX_COMPILER_LAUNCHER, as a definition or from the environment."""
    for kept in folder().glob("*.o"):
        if kept.stat().st_mtime < time.time() - KEPT_SECONDS:
            kept.unlink(missing_ok=True)
    return f"{sys.executable};{Path(__file__).resolve()}"


def _options(command: Sequence[str]) -> Iterator[str]:
    """The options that change what is compiled, apart from what the preprocessor has done already."""
    words = iter(command[1:])
    for word in words:
        if word in PATHS_FOLLOW:
            next(words, None)
        elif not word.startswith(NOT_OF_THE_OBJECT) and not word.endswith(SOURCES):
            yield word


def _key(command: Sequence[str], output: int) -> str | None:
    """A hash of all that the object depends on; None if the source cannot be preprocessed. Writes dependencies."""
    preprocess = ["-E" if word == "-c" else word for word in command]
    del preprocess[output - 1 : output + 1]
    text = subprocess.run([*preprocess, "-P"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if text.returncode:
        return None
    version = subprocess.run([command[0], "--version"], stdout=subprocess.PIPE, check=True).stdout
    content = hashlib.sha256(text.stdout)
    content.update(b"\0".join((b"", version, *(word.encode() for word in _options(command)))))
    return content.hexdigest()


def compile(command: Sequence[str]) -> int:
    """Runs a compiler, or takes what it gave before; returns the exit code."""
    if "-c" not in command or "-o" not in command:
        return subprocess.call(command)
    output = command.index("-o") + 1
    if (key := _key(command, output)) is None:
        return subprocess.call(command)
    kept = folder() / f"{key}.o"
    try:
        shutil.copyfile(kept, command[output])
        os.utime(kept)
        return 0
    except FileNotFoundError:
        pass
    done = subprocess.run(command, stderr=subprocess.PIPE)
    sys.stderr.buffer.write(done.stderr)
    # What the compiler warned of is to be said each time.
    if done.returncode == 0 and not done.stderr:
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as part:
            part.write(Path(command[output]).read_bytes())
        os.replace(part.name, kept)
    return done.returncode


if __name__ == "__main__":
    sys.exit(compile(sys.argv[1:]))
