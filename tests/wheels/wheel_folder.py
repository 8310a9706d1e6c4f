"""Where wheels are, and running the tools that make and install them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
WHEELS = CHECKOUT / "build/wheels"


def say(text: str) -> None:
    """Tells how far it is."""
    print(f"wheels: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, env: Mapping[str, str] | None = None) -> None:
    """Runs a tool of this Python's environment."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PATH": path, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"wheels: `{' '.join(map(str, command))}` failed:\n{done.stdout}")
