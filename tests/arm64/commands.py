"""Runs the programs that prepare the emulated machine."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SHOWN_LINES = 15


class Unavailable(RuntimeError):
    """The emulated machine cannot be had here; the message is the reason."""


def call(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    """Run a program that prepares a piece; its failure, or its absence, makes the machine unavailable."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except FileNotFoundError:
        raise Unavailable(f"{words[0]} is not installed") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-SHOWN_LINES:])
        raise Unavailable(f"`{' '.join(words)}` failed with exit code {done.returncode}:\n{tail}")
    return done.stdout
