"""Many callers at once, and as many of torch's threads as torch is told to use."""

import subprocess
import sys
import threading
from collections.abc import Callable

import cases
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

import ao_arm
from ao_arm import _library

CALLERS = 8
ROUNDS = 4 if cases.EMULATED_CPU else 25
MS = (1, 2, 3, 5, 8, 17, 33, 65)


def packed_layer(n: int, k: int) -> ao_arm.ACLPackedTensor:
    return ao_arm.ACLPackedTensor.from_hp(torch.randn(n, k))


def run_at_once(calls: list[Callable[[], None]]) -> None:
    """Runs each call in a Python thread of its own, all starting together; raises what the first failing one raised."""
    start, errors = threading.Barrier(len(calls)), []

    def run(call: Callable[[], None]) -> None:
        start.wait()
        try:
            call()
        except Exception as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def checks(cases_of_thread: list[tuple[str, Tensor, ao_arm.ACLPackedTensor, Tensor]]) -> Callable[[], None]:
    def check() -> None:
        for turn in range(ROUNDS):
            for name, x, weight, expected in cases_of_thread:
                assert cases.same_bits(linear(x, weight), expected), f"{name}, round {turn}"

    return check


def test_threads_that_call_one_layer_with_different_m(kernel: str, threads: int) -> None:
    weight = packed_layer(400, 130)
    calls = []
    for m in MS:
        x = torch.randn(m, 130)
        calls.append(checks([(f"{m=}", x, weight, linear(x, weight))]))
    assert len(calls) == CALLERS
    with cases.torch_threads(threads):
        run_at_once(calls)


@pytest.mark.parametrize("m", cases.thinned([1, 7, 64, 130]))
def test_any_number_of_threads_gives_the_same_bits(m: int) -> None:
    """Large enough for the team; shares end inside of columns, rows and blocks."""
    x, n = torch.randn(m, 416), 701 if cases.EMULATED_CPU else 1501
    layouts = {
        "dynamic": ao_arm.ACLPackedLayout("asymmetric"),
        "grouped": ao_arm.acl_int4_grouped().layout(416),
        "static": ao_arm.ACLPackedLayout("asymmetric", "per_tensor", "per_channel", "int8_static", "int8"),
    }
    static = torch.tensor([0.03]), torch.tensor([5], dtype=torch.int8)
    for name, layout in layouts.items():
        weight = ao_arm.ACLPackedTensor.from_hp(torch.randn(n, 416), layout, *(static if name == "static" else ()))
        with cases.torch_threads(1):
            expected = linear(x, weight)
        for threads in cases.thinned([2, 3, 5, 16]):
            with cases.torch_threads(threads):
                assert cases.same_bits(linear(x, weight), expected), f"{name}, {threads} threads"


def test_threads_that_call_layers_of_one_shape(kernel: str, threads: int) -> None:
    """Layers of a shape share what a kernel prepared for it, and each thread goes round the layers in another order."""
    weights = [packed_layer(65, 96) for _ in range(4)]
    calls = []
    for caller in range(CALLERS):
        own = []
        for turn in range(len(weights)):
            which, m = (caller + turn) % len(weights), MS[(caller + 3 * turn) % len(MS)]
            x = torch.randn(m, 96)
            own.append((f"layer {which}, {m=}", x, weights[which], linear(x, weights[which])))
        calls.append(checks(own))
    with cases.torch_threads(threads):
        run_at_once(calls)


def test_threads_whose_first_call_of_a_shape_is_at_once(kernel: str) -> None:
    """No thread has met this shape before, so what is found out about it is found out by all at once."""
    k = 197 + cases.KERNELS.index(kernel)
    weight, x = packed_layer(35, k), torch.randn(max(MS), k)
    results: dict[int, Tensor] = {}

    def call(m: int) -> None:
        results[m] = linear(x[:m], weight)

    run_at_once([lambda m=m: call(m) for m in MS])
    qdata, scale, _ = weight.get_plain()
    for m, result in results.items():
        expected = ao_arm.reference.linear_int8_dynamic(x[:m], qdata, scale, None, True, True)
        assert cases.same_bits(result, expected), f"{m=}"


def test_threads_that_pack_and_unpack(kernel: str) -> None:
    def pack_and_unpack(n: int) -> None:
        for _ in range(ROUNDS):
            values = cases.int8_values(n, 65)
            packed = ao_arm.ACLPackedTensor.from_plain(values, torch.ones(n), None, ao_arm.ACLPackedLayout())
            assert torch.equal(packed.get_plain()[0], values), f"{n=}"

    run_at_once([lambda n=n: pack_and_unpack(n) for n in (1, 7, 33, 33, 64, 64, 129, 130)])


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor"])
def test_results_do_not_depend_on_the_number_of_threads(granularity: str, kernel: str) -> None:
    layout = ao_arm.ACLPackedLayout("asymmetric", granularity)
    weight = ao_arm.ACLPackedTensor.from_hp(torch.randn(769, 128), layout)
    for m in cases.thinned([1, 7, 64, 257, 130 if cases.EMULATED_CPU else 600]):
        x, results = torch.randn(m, 128), []
        for count in (1, 2, 3, 1):
            with cases.torch_threads(count):
                results.append(linear(x, weight))
        assert all(cases.same_bits(result, results[0]) for result in results), f"{m=}"


PROGRAM = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
torch.ops.load_library(sys.argv[1])
weight = torch.ops.ao_arm.pack_int8(torch.ones(1024, 1024, dtype=torch.int8), "")
x, scale = torch.ones(64, 1024), torch.ones(1024)
for threads in (1, 2, 1):
    torch.set_num_threads(threads)
    before = len([*Path("/proc/self/task").iterdir()])
    torch.ops.ao_arm.linear_int8_dynamic(x, weight, scale, None, True, True)
    print(threads, len([*Path("/proc/self/task").iterdir()]) - before)
"""


@pytest.mark.slow
@pytest.mark.x86
def test_torch_set_num_threads_is_followed() -> None:
    """Threads are torch's: allowed one, a call starts no other; allowed two, it starts the second."""
    command = [sys.executable, "-c", PROGRAM, str(_library.PATH)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1 0", "2 1", "1 0"]
