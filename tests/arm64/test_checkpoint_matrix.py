"""Checkpoints written on one CPU and read on another, packed anew: weights are equal, and outputs, or near for int4."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from machine import Machine

PEER = Path(__file__).with_name("checkpoint_peer.py")
CHECKOUT = Path(__file__).resolve().parents[2]
HERE = "this machine"
PLACES = (HERE, "a64fx", "neoverse-n1", "neoverse-v1")
#: What serves a weight that has just been loaded.
EXPECTED = {HERE: "portable/", "a64fx": "acl/", "neoverse-n1": "neon/", "neoverse-v1": "neon/"}
EXPECTED_INT4 = {HERE: "portable/int4_", "a64fx": "portable/int4_", "neoverse-n1": "neon/", "neoverse-v1": "neon/"}


@contextmanager
def _peer(machine: Machine, place: str, *folders: str) -> Iterator[subprocess.Popen[str]]:
    if place != HERE:
        with machine.start(place, [PEER, *folders], stdin=subprocess.PIPE) as process:
            yield process
        return
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, str(PEER), *folders]
    with subprocess.Popen(
        command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        yield process


@pytest.fixture(scope="module")
def readings(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """By reader and writer, the kernels that serve the loaded weights. One process a place writes, then reads all."""
    written = {place: str(tmp_path_factory.mktemp("checkpoint")) for place in PLACES}
    names = {folder: place for place, folder in written.items()}
    with ExitStack() as stack:
        peers = {
            place: stack.enter_context(_peer(machine, place, folder, *written.values()))
            for place, folder in written.items()
        }
        for place, peer in peers.items():
            assert peer.stdout is not None
            lines = []
            for line in peer.stdout:
                lines.append(line)
                if line == "written\n":
                    break
            assert lines[-1:] == ["written\n"], f"{place} did not write: {''.join(lines)}"
        for peer in peers.values():
            assert peer.stdin is not None
            print(file=peer.stdin, flush=True)
        read = {}
        for place, peer in peers.items():
            output, _ = peer.communicate()
            assert peer.returncode == 0, f"{place} did not read: {output}"
            kernels = json.loads(output.strip().splitlines()[-1])
            read[place] = {names[folder]: found for folder, found in kernels.items()}
    return read


@pytest.mark.parametrize("reader", PLACES)
@pytest.mark.parametrize("writer", PLACES)
def test_checkpoint(writer: str, reader: str, readings: dict[str, dict[str, list[str]]]) -> None:
    found = readings[reader][writer]
    of_int4 = [kernel for kernel in found if "int4" in kernel or kernel.startswith("kleidiai/")]
    assert any(kernel.startswith(EXPECTED[reader]) for kernel in found if kernel not in of_int4), found
    assert len(of_int4) == 1 and of_int4[0].startswith(EXPECTED_INT4[reader]), found
