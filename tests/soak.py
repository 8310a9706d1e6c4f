"""Layers under load: many callers, many calls, forks, no memory left; and a checkpoint with each byte damaged.

    .venv/bin/python tests/soak.py [--seconds 60] [--calls 100000] [--bytes-apart 1]

Verdicts are of bits, bytes and exit codes; how much is done in the seconds depends on the machine, and no verdict does.
`tests/test_soak.py` has short forms of the same.
"""

import argparse
import gc
import io
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cases
import torch
from damaged_checkpoints import refused_when_cut, refused_when_flipped
from torch import Tensor
from torch.nn.functional import linear

import ao_arm
from ao_arm import ACLPackedTensor
from ao_arm.affine_quantized import as_weight

CALLERS, LAYERS, MS, THREADS = 16, 8, (1, 2, 5, 17, 64, 130), (1, 2, 3, 4)
MOST_THREADS = (65, 130, 257)
MEGABYTE = 1 << 20
#: Megabytes, at most, that are taken until none is left: more than the limit and what a process has freed before.
MOST_EATEN = 1024


@dataclass(frozen=True)
class Layer:
    """A weight, inputs of several numbers of rows, and what it makes of each on one thread."""

    weight: ACLPackedTensor
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def layers(count: int, n: int, k: int) -> list[Layer]:
    """Of all schemes in turn."""
    torch.manual_seed(0)
    layouts = [*cases.SCHEMES.values()]
    weights = [cases.packed(torch.randn(n, k), layouts[i % len(layouts)]) for i in range(count)]
    inputs = tuple(torch.randn(m, k) for m in MS)
    with cases.torch_threads(1):
        return [Layer(weight, inputs, tuple(linear(x, weight) for x in inputs)) for weight in weights]


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def many_callers(seconds: float, most_growth: int = 32 * MEGABYTE) -> str:
    """Callers that share layers, each with changing rows and numbers of threads: the same bits, no more memory."""
    shared = layers(LAYERS, 700, 416)
    stop, warm = threading.Event(), threading.Barrier(CALLERS + 1)
    errors: list[str] = []
    calls = [0] * CALLERS

    def call(choice: random.Random) -> None:
        threads, which, m = choice.choice(THREADS), choice.randrange(LAYERS), choice.randrange(len(MS))
        torch.set_num_threads(threads)  # of this caller
        layer = shared[which]
        if not torch.equal(linear(layer.inputs[m], layer.weight), layer.outputs[m]):
            errors.append(f"layer {which}, m = {MS[m]}, {threads} threads")

    def caller(number: int) -> None:
        choice = random.Random(number)
        try:
            for _ in range(30):
                call(choice)
            warm.wait()
            while not stop.is_set() and not errors:
                call(choice)
                calls[number] += 1
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            warm.abort()

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for each in callers:
        each.start()
    try:
        warm.wait()
    except threading.BrokenBarrierError:
        pass
    before = resident()
    time.sleep(seconds)
    after = resident()
    stop.set()
    for each in callers:
        each.join()
    require(not errors, f"{len(errors)} wrong results or errors, first: {errors[:1]}")
    require(min(calls) > 0, "a caller made no call")
    require(after - before < most_growth, f"memory grew by {after - before} bytes in {sum(calls)} calls")
    return f"{sum(calls)} calls by {CALLERS} threads, all bits the same, memory grew by {grown(before, after)}"


def many_calls(calls: int, most_growth: int = 2 * MEGABYTE) -> str:
    """Calls, refused calls, and weights that are packed and loaded: what they take they give back."""
    some = layers(3, 33, 96)
    refused = torch.randn(1, 95)
    files = [cases.saved(as_weight(layer.weight)).getvalue() for layer in some]

    def refuse(layer: Layer) -> None:
        try:
            linear(refused, layer.weight)
        except ValueError:
            return
        raise AssertionError("a wrong input was taken")

    def work(count: int) -> None:
        for at in range(count):
            layer = some[at % len(some)]
            linear(layer.inputs[at % 3], layer.weight)
            if at % 20 == 0:
                refuse(layer)
            if at % 100 == 0:
                torch.load(io.BytesIO(files[at % len(files)]), weights_only=True)

    with cases.torch_threads(1):
        work(calls // 5)
        before = resident()
        work(calls)
        after = resident()
    require(after - before < most_growth, f"memory grew by {after - before} bytes in {calls} calls")
    others = f"{calls // 20} refused ones, {calls // 100} loaded weights"
    return f"{calls} calls, {others}: memory grew by {grown(before, after)}"


def forks() -> str:
    """A child of a process that used several threads goes on with one, as with torch's own layers."""
    some = layers(3, 700, 416)
    with cases.torch_threads(2):
        for layer in some:
            linear(layer.inputs[-1], layer.weight)

    def child() -> None:
        torch.set_num_threads(1)
        for layer in some:
            again = cases.packed(layer.weight.dequantize(), layer.weight.get_layout())
            require(again.kernel == layer.weight.kernel, "another kernel is chosen")
            for x, output in zip(layer.inputs, layer.outputs, strict=True):
                require(torch.equal(linear(x, layer.weight), output), "a child of a fork computes something else")

    for _ in range(5):
        in_child(child)
    return "5 children after threads were used compute the same bits"


def many_threads() -> str:
    """More threads than a machine has cores, or a layer has columns to share."""
    for layer in layers(3, 700, 416):
        for threads in MOST_THREADS:
            with cases.torch_threads(threads):
                for x, output in zip(layer.inputs, layer.outputs, strict=True):
                    require(torch.equal(linear(x, layer.weight), output), f"{threads} threads compute something else")
    return f"{', '.join(map(str, MOST_THREADS))} threads compute the same bits"


def no_memory(limits: int) -> str:
    """Where less and less address space is left, all ends in the right bits or in an error of Python's."""
    some = layers(3, 512, 1024)
    plain = [layer.weight.dequantize() for layer in some]
    x = torch.randn(1000, 1024)
    files = [cases.saved(as_weight(layer.weight)).getvalue() for layer in some]
    with cases.torch_threads(1):
        outputs = [linear(x, layer.weight) for layer in some]

    def load(at: int) -> bool:
        loaded = ao_arm.packed_weight_of(torch.load(io.BytesIO(files[at]), weights_only=True))
        return loaded is not None and torch.equal(loaded.packed_weight, some[at].weight.packed_weight)

    def pack(at: int) -> bool:
        again = cases.packed(plain[at], some[at].weight.get_layout())
        return again.packed_weight.shape == some[at].weight.packed_weight.shape

    works: tuple[Callable[[int], bool], ...] = (
        lambda at: torch.equal(linear(x, some[at].weight), outputs[at]),
        lambda at: bool(some[at].weight.dequantize().shape),
        load,
        pack,
    )

    def child(left: int) -> None:
        torch.set_num_threads(1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 64 * MEGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        eaten = []
        try:
            for _ in range(MOST_EATEN):
                eaten.append(torch.empty(MEGABYTE, dtype=torch.uint8))
        except RuntimeError:  # of torch's allocator
            del eaten[:left]
        else:  # as under qemu, which does not enforce the limit of a process that it emulates
            raise AssertionError("this system does not limit address space")
        refused = 0
        for at in range(len(some)):
            for work in works:
                try:
                    require(work(at), "another result where memory was short")
                except (MemoryError, RuntimeError):
                    refused += 1
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        require(refused > 0 or left > 0, "nothing was refused")
        for at in range(len(some)):
            require(all(work(at) for work in works), "once there is memory again something is still wrong")

    for step in range(limits):
        in_child(lambda step=step: child(step * 16 // limits))
    return f"{limits} limits of memory: the right bits or a Python error, and the right bits once there is memory again"


def damaged_files(bytes_apart: int) -> str:
    """A bit flipped in one byte after the other, and the file cut off after each."""
    places = range(0, MEGABYTE, bytes_apart)  # a file is smaller
    flipped, cut = refused_when_flipped(places), refused_when_cut(places)
    return f"{cut} bytes of a checkpoint: with a bit flipped {flipped} were refused, no weight was another one"


def in_child(work: Callable[[], None]) -> None:
    """Runs in a child of a fork, which has to end by itself and well: no signal, no abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    require(status == 0, f"a child ended with status {status}")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def grown(before: int, after: int) -> str:
    return f"{(after - before) / 1024:.0f} KiB"


def main() -> int:
    """Runs all of it; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of many callers (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=100_000, help="one after the other (default: %(default)s)")
    parser.add_argument("--bytes-apart", type=int, default=1, help="of a damaged file (default: %(default)s)")
    args = parser.parse_args()
    parts: dict[str, Callable[[], str]] = {
        "forks": forks,
        "files": lambda: damaged_files(args.bytes_apart),
        "memory": lambda: no_memory(limits=12),
        "calls": lambda: many_calls(args.calls),
        "callers": lambda: many_callers(args.seconds),
        "threads": many_threads,
    }
    failed = False
    for name, part in parts.items():
        try:
            print(f"{name}: {part()}", flush=True)
        except AssertionError as error:
            failed = True
            print(f"{name}: FAILED: {error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
