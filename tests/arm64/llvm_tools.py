"""Runs LLVM's tools."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def run_tool(llvm: Path, tool: str, words: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a tool of the folder that `cycles_pieces.llvm` returns, with `text` as its input."""
    env = {**os.environ, "LD_LIBRARY_PATH": str(llvm / "lib")}
    return subprocess.run(
        [str(llvm / "bin" / tool), *words], input=text, env=env, check=True, capture_output=True, text=True
    )
