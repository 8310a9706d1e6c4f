"""The calls that cycles.py compares; runs on the emulated machine.

    cycles_guest.py CANDIDATE,... MxKxN,... THREADS [--caches] [--models FOLDER]

Each candidate multiplies the same activations (m, k) with the same weight (n, k) and adds the same bias. Its result is
compared with the one in float64 before its region runs, a large one in some rows and columns.

With `--caches` each has two regions, in which accesses go through the model of caches: `cold`, where from empty caches
on another layer of the same kind and shape was called and then the activations were written; and `warm`, where the call
before is the same.

`kleidiai-int8` calls the library that the variable `KLEIDIAI_INT8` names, and is left out where it names none.

`FOLDER` is what `cycles_runtimes.write_models` wrote: the weights, and models of other runtimes among the candidates.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from marks import modelled_caches, run_region
from torch import Tensor
from torch.nn.functional import linear

Call = Callable[[], Tensor]

# The least signal to noise, in decibels; int8 per tensor comes to more than 30, 4 bits in groups of 128 to some 18.
LEAST_SQNR = 15.0

# Python, torch, its threads and the libraries below it all do things differently in the first calls. Of large layers,
# which take long to emulate, that is little: they have as many warm-ups as stay below a number of multiplications, and
# huge ones none but the call whose result is compared.
MOST_WARM_UPS = 8
WARM_UP_MULTIPLICATIONS = 4e8

# Of a result of so many multiplications only a sample is compared: some rows, and some columns; of a huge one's rows
# more columns, but not all.
LARGE = 1e8
HUGE = 1e9
SAMPLE = 16
SAMPLE_OF_HUGE = 256

# Larger weights repeat their values, which take long to draw; not after a number of them that a row or column may have.
MOST_VALUES = 4_000_037


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


def ours(x: Tensor, weight: Tensor, bias: Tensor, mapping: str = "asymmetric") -> Call:
    import ao_arm

    packed = ao_arm.ACLPackedTensor.from_hp(weight, ao_arm.ACLPackedLayout(mapping))
    return lambda: linear(x, packed, bias)


def ours_symmetric(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return ours(x, weight, bias, "symmetric")


def ours_acl(x: Tensor, weight: Tensor, bias: Tensor) -> Call | None:
    """Our layer on the row of the kernel table that is Arm Compute Library's."""
    from ao_arm import kernels

    (acl,) = (row for row in kernels.list(*weight.shape) if row.id.startswith("acl/"))
    if acl.reasons:
        return None
    with patch.dict(os.environ, {kernels.FORCE: acl.id}):
        return ours(x, weight, bias)


def kleidiai_int8(x: Tensor, weight: Tensor, bias: Tensor) -> Call | None:
    """KleidiAI alone, per token x per channel: its own quantization, packing and micro-kernels, on one thread."""
    path = os.environ.get("KLEIDIAI_INT8")
    if path is None or torch.get_num_threads() > 1:
        return None
    library, size, pointer = ctypes.CDLL(path), ctypes.c_size_t, ctypes.c_void_p
    library.packed_weight_bytes.argtypes = library.packed_rows_bytes.argtypes = (size, size)
    library.packed_weight_bytes.restype = library.packed_rows_bytes.restype = size
    library.pack_weight.argtypes = (size, size, pointer, pointer, pointer, pointer)
    multiply = library.multiply
    multiply.argtypes = (size, size, size, pointer, pointer, pointer, pointer)
    (m, k), n = x.shape, len(weight)
    scale = weight.abs().amax(dim=1) / 127
    qdata = (weight / scale[:, None]).round().to(torch.int8)
    packed = torch.empty(library.packed_weight_bytes(n, k), dtype=torch.uint8)
    library.pack_weight(n, k, *(tensor.data_ptr() for tensor in (qdata, bias, scale, packed)))
    rows_bytes = library.packed_rows_bytes(m, k)

    def call() -> Tensor:
        rows, result = torch.empty(rows_bytes, dtype=torch.uint8), torch.empty(m, n)
        multiply(m, n, k, x.data_ptr(), rows.data_ptr(), packed.data_ptr(), result.data_ptr())
        return result

    return call


def ours_bf16(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return ours(x.bfloat16(), weight.bfloat16(), bias.bfloat16())


def quantization(values: Tensor, dtype: torch.dtype) -> tuple[float, int]:
    """The scale and the zero point that just hold these values in int8 or uint8."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = (high - low) / 255
    return scale, torch.iinfo(dtype).min - round(low / scale)


def linear_on_one_thread(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer without OpenBLAS's threads, which spin while they wait and take the time of those that work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = linear(x, weight, bias)
    torch.set_num_threads(threads)
    return result


def first_outputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Outputs enough to choose a scale by, which hardly cuts off any of the others."""
    return linear_on_one_thread(x[:SAMPLE], weight, bias)


def overflows(x: Tensor, bias: Tensor) -> bool:
    """Whether torch's static layers would write more values of the bias than there is room for, and crash."""
    return x.numel() < bias.numel()


def torch_static(
    x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, quantized_dtype: torch.dtype, per_channel: bool = False
) -> Call | None:
    """torch's own static quantization, from quantized input to quantized output."""
    if "onednn" not in torch.backends.quantized.supported_engines:
        return None
    torch.backends.quantized.engine = "onednn"
    scale, zero_point = quantization(x, dtype)
    input = torch.quantize_per_tensor(x, scale, zero_point, quantized_dtype)
    if per_channel:
        scales = weight.abs().amax(dim=1) / 127
        zero_points = torch.zeros(len(scales), dtype=torch.int64)
        quantized = torch.quantize_per_channel(weight, scales, zero_points, 0, torch.qint8)
    else:
        quantized = torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantized, None if overflows(x, bias) else bias)
    # Of an overload that is not named, torch tries several, which costs an exception.
    static: Callable[..., Tensor] = torch.ops.quantized.linear.default
    output_scale, output_zero_point = quantization(first_outputs(x, weight, bias), dtype)
    return lambda: static(input, packed, output_scale, output_zero_point)


def ours_static(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, input_is_float: bool = False) -> Call:
    """From quantized input to quantized output, or from floats to floats."""
    from ao_arm import ACLPackedLayout, ACLPackedTensor
    from ao_arm.reference import quantize_static

    def as_tensors(values: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero_point = quantization(values, dtype)
        return torch.tensor([scale]), torch.tensor([zero_point], dtype=dtype)

    given, wanted = as_tensors(x), as_tensors(first_outputs(x, weight, bias))
    layout = ACLPackedLayout(
        "asymmetric", "per_tensor", "per_channel", "int8_static", str(dtype).removeprefix("torch.")
    )
    packed = ACLPackedTensor.from_hp(weight, layout, *given)
    if input_is_float:
        return lambda: linear(x, packed, bias)
    input, op = quantize_static(x, *given), torch.ops.ao_arm.linear_int8_static.default
    arguments = (input, packed.packed_weight, packed.weight_scale, bias, *given, *wanted)

    def call() -> Tensor:
        result: Tensor = op(*arguments)
        return result

    call.output = wanted  # type: ignore[attr-defined]
    return call


def in_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """4-bit values (n, k) and bfloat16 scales (n, k / group), symmetric."""
    groups = weight.unflatten(1, (-1, group))
    scale = (groups.abs().amax(dim=2) / 7).bfloat16()
    return (groups / scale.float()[..., None]).round().clamp(-8, 7).to(torch.int8).flatten(1), scale


def ours_int4(x: Tensor, weight: Tensor, bias: Tensor, group: int, kernel: str = "") -> Call | None:
    from ao_arm import _ops

    n, k = weight.shape
    if k % group:
        return None
    if kernel and kernel != _ops.select_kernel_int4(n, k, group, False, False, kernel):
        return None
    packed = _ops.pack_int4(*in_groups(weight, group), None, kernel)
    op = _ops.linear_qta8a_qga4w
    return lambda: op(x, packed, n, bias)


def three(x: Tensor, weight: Tensor, bias: Tensor, shared: bool) -> Call:
    """Three layers that multiply the same input; the result is the last one's."""
    from ao_arm import ACLPackedLayout, ACLPackedTensor, _ops

    packed = [ACLPackedTensor.from_hp(weight, ACLPackedLayout("asymmetric")) for _ in range(3)]
    weights, scales = [one.packed_weight for one in packed], [one.weight_scale for one in packed]
    one, several, biases = _ops.linear_int8_dynamic, _ops.linear_int8_dynamic_shared, [bias] * 3
    if shared:
        return lambda: several(x, weights, scales, biases, False, True)[-1]
    return lambda: [one(x, *of, bias, False, True) for of in zip(weights, scales, strict=True)][-1]


def three_int4(x: Tensor, weight: Tensor, bias: Tensor, shared: bool) -> Call | None:
    from ao_arm import _ops

    n, k = weight.shape
    if k % 32:
        return None
    weights = [_ops.pack_int4(*in_groups(weight, 32), None, "") for _ in range(3)]
    one, several, biases = _ops.linear_qta8a_qga4w, _ops.linear_qta8a_qga4w_shared, [bias] * 3
    if shared:
        return lambda: several(x, weights, [n] * 3, biases)[-1]
    return lambda: [one(x, packed, n, bias) for packed in weights][-1]


def kleidiai_int4(x: Tensor, weight: Tensor, bias: Tensor) -> Call | None:
    from ao_arm import _ops

    if weight.shape[1] % 32:
        return None
    table = json.loads(_ops.kernel_table_int4(weight.shape[0], weight.shape[1], 32, False, False))
    fitting = [row for row in table if row["id"].startswith("kleidiai/") and not row["reasons"]]
    return ours_int4(x, weight, bias, 32, min(fitting, key=lambda row: row["cost"])["id"]) if fitting else None


def torch_int4(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Call | None:
    """torch's own operator, which runs the KleidiAI inside libtorch."""
    n, k = weight.shape
    # A group that is a whole row has another format there, with float32 scales.
    if k % group or k == group:
        return None
    q, scale = in_groups(weight, group)
    nibbles = (q + 8).to(torch.uint8)
    packed = torch.ops.aten._dyn_quant_pack_4bit_weight(
        nibbles[:, 1::2] << 4 | nibbles[:, ::2], scale, bias, group, k, n
    )
    op = torch.ops.aten._dyn_quant_matmul_4bit
    return lambda: op(x, packed, group, k, n)


def by_torchao(layer: torch.nn.Module, x: Tensor) -> torch.nn.Module:
    """The layer with int8 weights per channel, which quantizes each token: as torchao's own tensor computes it."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(layer, Int8DynamicActivationInt8WeightConfig(version=2, set_inductor_config=False))
    return layer


def by_pt2e(layer: torch.nn.Module, x: Tensor) -> torch.nn.Module:
    """The graph that PT2E makes of a layer for Arm: static, per tensor."""
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import arm_inductor_quantizer as quantizers

    quantizer = quantizers.ArmInductorQuantizer()
    quantizer.set_global(quantizers.get_default_arm_inductor_quantization_config())
    # In what torch 2.10 exports without strict=True, quantizers find no layers.
    prepared = quantize_pt2e.prepare_pt2e(torch.export.export(layer, (x,), strict=True).module(), quantizer)
    prepared(x)
    converted: torch.nn.Module = quantize_pt2e.convert_pt2e(prepared)
    return converted


def exported_and_fused(layer: torch.nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    from ao_arm.passes import fuse_

    graph = torch.export.export(layer, (x,)).module()
    must_be_fused(fuse_(graph))
    return graph


def packed(layer: torch.nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    import ao_arm

    must_be_taken(ao_arm.pack_(layer))
    return layer


def frozen(layer: torch.nn.Module, x: Tensor, backend: str = "inductor") -> Callable[[Tensor], Tensor]:
    """Compiled with weights as constants."""
    from ao_arm.passes import compiled_reports

    compiled: Callable[[Tensor], Tensor] = torch.compile(layer, backend=backend)
    # The setting, for Dynamo does not read the option of that name; it is asked when the first call compiles.
    with torch._inductor.config.patch(freezing=True), torch.inference_mode():
        compiled(x)
    if backend == "ao_arm":
        must_be_fused(compiled_reports()[-1])
    return compiled


def must_be_fused(report: Any) -> None:
    """Ends the program if a quantized layer is none of our ops."""
    if report.left or not report.fused:
        sys.exit(f"not fused: {report}")


def must_be_taken(report: Any) -> None:
    """The same if a quantized weight was not packed."""
    if report.left or not report.taken:
        sys.exit(f"not packed: {report}")


def stock(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    quantize: Callable[[torch.nn.Module, Tensor], torch.nn.Module],
    prepare: Callable[[torch.nn.Module, Tensor], Callable[[Tensor], Tensor]],
) -> Call:
    """A layer that another tool quantized, and what is made of it."""
    # Tools that trace and change layers know no tensors of inference mode.
    with torch.inference_mode(False), torch.no_grad():
        x = x.clone()
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        function = prepare(quantize(torch.nn.Sequential(layer).eval(), x), x)
    return lambda: function(x)


def other_runtime(name: str, models: Path, x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """A layer as another runtime's tools quantized it elsewhere."""
    from cycles_runtimes import RUNTIMES

    n, k = weight.shape
    layer = RUNTIMES[name][0]((models / f"{k}x{n}.{name}").read_bytes())
    return lambda: layer.rows(x)


CANDIDATES: dict[str, Callable[[Tensor, Tensor, Tensor], Call | None]] = {
    "fp32": fp32,
    "torch-per-tensor": torch_per_tensor,
    "ours": ours,
    "ours-symmetric": ours_symmetric,
    "ours-bf16": ours_bf16,
    "ours-acl": ours_acl,
    "kleidiai-int8": kleidiai_int8,
    "torch-static-s8": partial(torch_static, dtype=torch.int8, quantized_dtype=torch.qint8),
    "torch-static-u8": partial(torch_static, dtype=torch.uint8, quantized_dtype=torch.quint8),
    "torch-static-u8-per-channel": partial(
        torch_static, dtype=torch.uint8, quantized_dtype=torch.quint8, per_channel=True
    ),
    "static-s8": partial(ours_static, dtype=torch.int8),
    "static-u8": partial(ours_static, dtype=torch.uint8),
    "static-float": partial(ours_static, dtype=torch.int8, input_is_float=True),
    "int4-g32": partial(ours_int4, group=32),
    "int4-g128": partial(ours_int4, group=128),
    "int4-g32-kleidiai": kleidiai_int4,
    "torch-int4-g32": partial(torch_int4, group=32),
    "torch-int4-g128": partial(torch_int4, group=128),
    "torchao-int8": partial(stock, quantize=by_torchao, prepare=lambda layer, x: layer),
    "torchao-int8-packed": partial(stock, quantize=by_torchao, prepare=packed),
    "torchao-int8-fused": partial(stock, quantize=by_torchao, prepare=exported_and_fused),
    "pt2e": partial(stock, quantize=by_pt2e, prepare=frozen),
    "pt2e-fused": partial(stock, quantize=by_pt2e, prepare=partial(frozen, backend="ao_arm")),
    "three": partial(three, shared=False),
    "three-shared": partial(three, shared=True),
    "three-int4-g32": partial(three_int4, shared=False),
    "three-int4-g32-shared": partial(three_int4, shared=True),
}


def dequantized(result: Tensor, call: Call) -> Tensor:
    """A result as float64, whatever it is quantized to."""
    if result.is_quantized:
        return result.dequantize().double()
    if result.dtype.is_floating_point:
        return result.double()
    scale, zero_point = call.output  # type: ignore[attr-defined]
    values: Tensor = (result.double() - zero_point.double()) * scale
    return values


def sqnr(exact: Tensor, result: Tensor) -> float:
    """Signal to quantization noise, in decibels."""
    return float(20 * torch.log10(exact.norm() / (exact - result).norm()))


@lru_cache(maxsize=1)
def weight_of(k: int, n: int, models: Path | None) -> Tensor:
    """A layer's weight, made once for shapes that follow each other."""
    if models:
        loaded: Tensor = torch.load(models / f"{k}x{n}.pt")[0]
        return loaded
    values = torch.randn(min(n * k, MOST_VALUES)) / k**0.5
    weight: Tensor = values.repeat(-(-n * k // len(values)))[: n * k].view(n, k)
    return weight


def compared(m: int, k: int, n: int) -> list[tuple[Tensor, Tensor]]:
    """The rows and the columns of a result that are compared: of a large one some rows, and some columns."""
    rows, columns = torch.arange(m), torch.arange(n)
    if m * k * n <= LARGE:
        return [(rows, columns)]
    return [(some(rows), columns if m * k * n <= HUGE else some(columns, SAMPLE_OF_HUGE)), (rows, some(columns))]


def some(indices: Tensor, count: int = SAMPLE) -> Tensor:
    """The first, the last and some between."""
    return indices.index_select(0, torch.linspace(0, len(indices) - 1, min(len(indices), count)).long())


def run_with_caches(label: str, call: Call, other: Call, x: Tensor) -> None:
    """Run the two regions of a call."""
    other()
    with modelled_caches():
        other()
        x.mul_(1)
        run_region(f"{label} cold", call)
        call()
        run_region(f"{label} warm", call)


def main(
    candidates: Sequence[str],
    shapes: Sequence[tuple[int, int, int]],
    threads: int = 1,
    with_caches: bool = False,
    models: Path | None = None,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for m, k, n in shapes:
        x, weight = torch.randn(m, k), weight_of(k, n, models)
        bias = torch.load(models / f"{k}x{n}.pt")[1] if models else torch.randn(n)
        if overflows(x, bias):
            bias.zero_()
        exact = [
            (rows, columns, linear_on_one_thread(x[rows].double(), weight[columns].double(), bias[columns].double()))
            for rows, columns in compared(m, k, n)
        ]
        for name in candidates:
            make = partial(other_runtime, name, models) if models and name not in CANDIDATES else CANDIDATES[name]
            if (call := make(x, weight, bias)) is None:
                continue
            result = dequantized(call(), call)
            quality = min(sqnr(values, result[rows][:, columns]) for rows, columns, values in exact)
            if not quality > LEAST_SQNR:
                sys.exit(f"{name} is wrong for {m}x{k}x{n}: {quality:.1f} dB")
            least = 1 if m * k * n <= HUGE else 0
            for _ in range(min(MOST_WARM_UPS, max(least, int(WARM_UP_MULTIPLICATIONS / (m * k * n))))):
                call()
            # A layer of its own memory.
            other = make(x, weight.clone(), bias) if with_caches else None
            gc.collect()
            if other is None:
                run_region(f"{name} {m}x{k}x{n}", call)
            else:
                run_with_caches(f"{name} {m}x{k}x{n}", call, other, x)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("candidates", type=lambda text: text.split(","))
    parser.add_argument("shapes", type=lambda text: [tuple(map(int, shape.split("x"))) for shape in text.split(",")])
    parser.add_argument("threads", type=int)
    parser.add_argument("--caches", action="store_true")
    parser.add_argument("--models", type=Path)
    given = parser.parse_args()
    with torch.inference_mode():
        main(given.candidates, given.shapes, given.threads, given.caches, given.models)
