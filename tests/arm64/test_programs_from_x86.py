"""Programs that were exported on x86, in the form that x86 has for them, are fused on an emulated AArch64 CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

from machine import Machine

PEER = Path(__file__).with_name("program_peer.py")
CHECKOUT = Path(__file__).resolve().parents[2]


def test_programs_from_x86_are_fused_on_arm(machine: Machine, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    written = subprocess.run([sys.executable, PEER, "write", tmp_path], env=env, text=True, capture_output=True)
    assert written.returncode == 0, written.stderr
    read = machine.run("neoverse-n1", [PEER, "read", str(tmp_path)])
    assert read.returncode == 0, f"{read.stdout}{read.stderr}"
    assert json.loads(read.stdout.splitlines()[-1]) == {"int8": "neon/dotprod", "int4": "neon/int4_dotprod"}
