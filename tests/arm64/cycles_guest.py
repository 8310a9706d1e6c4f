"""The calls that cycles.py compares; runs on the emulated machine.

    cycles_guest.py CANDIDATE,... MxKxN,...

Each candidate multiplies the same activations (m, k) with the same weight (n, k) and adds the same bias. Its result is
compared with the one in float64 before its region runs.
"""

import gc
import sys
from collections.abc import Callable

import torch
from marks import run_region
from torch import Tensor
from torch.nn.functional import linear

Call = Callable[[], Tensor]

# The least signal to noise, in decibels; int8 per tensor comes to more than 30.
LEAST_SQNR = 20.0

# Python, torch and the libraries below it all do things differently in the first calls.
WARM_UPS = 8
WARM_UPS_WHEN_LARGE = 2
LARGE = 1e8  # multiplications


def fp32(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return lambda: linear(x, weight, bias)


def torch_per_tensor(x: Tensor, weight: Tensor, bias: Tensor) -> Call | None:
    """torch's own dynamic quantization; this engine gives weights that are quantized per tensor to ACL directly."""
    if "onednn" not in torch.backends.quantized.supported_engines:
        return None
    torch.backends.quantized.engine = "onednn"
    quantized = torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantized, bias)
    dynamic = torch.ops.quantized.linear_dynamic
    return lambda: dynamic(x, packed, False)


def ours(x: Tensor, weight: Tensor, bias: Tensor, mapping: str = "symmetric") -> Call:
    import ao_arm

    packed = ao_arm.ACLPackedTensor.from_hp(weight, ao_arm.ACLPackedLayout(mapping))
    return lambda: linear(x, packed, bias)


def ours_asymmetric(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return ours(x, weight, bias, "asymmetric")


def ours_bf16(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return ours(x.bfloat16(), weight.bfloat16(), bias.bfloat16())


CANDIDATES: dict[str, Callable[[Tensor, Tensor, Tensor], Call | None]] = {
    "fp32": fp32,
    "torch-per-tensor": torch_per_tensor,
    "ours": ours,
    "ours-asymmetric": ours_asymmetric,
    "ours-bf16": ours_bf16,
}


def sqnr(exact: Tensor, result: Tensor) -> float:
    """Signal to quantization noise, in decibels."""
    return float(20 * torch.log10(exact.norm() / (exact - result).norm()))


def main(candidates: list[str], shapes: list[tuple[int, int, int]]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for m, k, n in shapes:
        x, weight, bias = torch.randn(m, k), torch.randn(n, k) / k**0.5, torch.randn(n)
        exact = linear(x.double(), weight.double(), bias.double())
        for name in candidates:
            if (call := CANDIDATES[name](x, weight, bias)) is None:
                continue
            result = call()
            if not (quality := sqnr(exact, result.double())) > LEAST_SQNR:
                sys.exit(f"{name} is wrong for {m}x{k}x{n}: {quality:.1f} dB")
            for _ in range(WARM_UPS_WHEN_LARGE if m * k * n > LARGE else WARM_UPS):
                call()
            gc.collect()
            run_region(f"{name} {m}x{k}x{n}", call)


if __name__ == "__main__":
    with torch.inference_mode():
        main(
            sys.argv[1].split(","),
            [(int(m), int(k), int(n)) for m, k, n in (shape.split("x") for shape in sys.argv[2].split(","))],
        )
