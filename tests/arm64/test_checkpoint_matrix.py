"""Checkpoints written on one CPU and read on another, packed anew: weights are equal, and outputs, or near for int4."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def _run(machine: Machine, place: str, *args: str) -> str:
    if place == HERE:
        env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run([sys.executable, PEER, *args], env=env, text=True, capture_output=True)
    else:
        done = machine.run(place, [PEER, *args])
    assert done.returncode == 0, f"{place}: {' '.join(args)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folders(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each place wrote."""
    made = {place: str(tmp_path_factory.mktemp("checkpoint")) for place in PLACES}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda place: _run(machine, place, "write", made[place]), PLACES))
    return made


@pytest.fixture(scope="module")
def readings(machine: Machine, folders: dict[str, str]) -> dict[str, dict[str, list[str]]]:
    """By reader and writer, the kernels that serve the loaded weights."""
    with ThreadPoolExecutor(2) as pool:
        outputs = pool.map(lambda place: _run(machine, place, "read", *folders.values()), PLACES)
    parsed = [json.loads(output.strip().splitlines()[-1]) for output in outputs]
    names = {folder: place for place, folder in folders.items()}
    return {
        reader: {names[folder]: kernels for folder, kernels in result.items()}
        for reader, result in zip(PLACES, parsed, strict=True)
    }


@pytest.mark.parametrize("reader", PLACES)
@pytest.mark.parametrize("writer", PLACES)
def test_checkpoint(writer: str, reader: str, readings: dict[str, dict[str, list[str]]]) -> None:
    found = readings[reader][writer]
    of_int4 = [kernel for kernel in found if "int4" in kernel or kernel.startswith("kleidiai/")]
    assert any(kernel.startswith(EXPECTED[reader]) for kernel in found if kernel not in of_int4), found
    assert len(of_int4) == 1 and of_int4[0].startswith(EXPECTED_INT4[reader]), found
