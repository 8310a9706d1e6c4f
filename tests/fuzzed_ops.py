"""Calls every op with arguments that somebody made up: `python tests/fuzzed_ops.py SECONDS`.

A call that is right has some of its arguments changed. Whatever is changed, the op gives a result or refuses, as torch
does where it is asked first; `tests/fuzzed.py ops` runs this with the library under sanitizers, which see the rest. The
last call is in a file, in case that it is fatal.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from ao_arm import _ops

#: Those of the library, each with its schema.
OPS = {
    op._schema.name.removeprefix("ao_arm::"): op for op in vars(_ops).values() if isinstance(op, torch._ops.OpOverload)
}
DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32),
    *(torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn),
)
INTEGERS = (-(1 << 63), -(1 << 31), -1, 0, 1, 2, 31, 32, 33, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e308, float("inf"), float("-inf"), float("nan"))
STRINGS = ("", "portable/baseline", "portable/int4_baseline", "acl/s8s32+epilogue", "nonsense", "\0", "é" * 300)
N, K, M, GROUP = 21, 96, 5, 32

#: An op, and its arguments by name.
Call = tuple[str, dict[str, Any]]

#: What torch says before an op of ours is asked, or of memory that there is not.
OF_TORCH = re.compile(
    r"expected (value|a value)|Expected a value|allocate memory|not enough memory|Could not run"
    r"|Cannot access data pointer|[Ss]torage size calculation|multiplication overflow|Sparse|meta tensor"
    r"|is not implemented|not supported|Overflow when unpacking|doesn't have storage|invalid size|negative dimension",
    re.IGNORECASE,
)


def right_arguments(op: str) -> dict[str, Any]:
    """What each op takes, by the names of its arguments."""
    int4 = "int4" in op or "qga4w" in op
    qdata = torch.randint(-8, 8, (N, K), dtype=torch.int8)
    scale = torch.rand(N, K // GROUP) + 0.1
    packs = op.startswith("pack_")
    packed = _ops.pack_int4(qdata, scale, None, "") if int4 else _ops.pack_int8(qdata, "")
    static = op == "linear_int8_static"
    shared = op.endswith("_shared")
    return {
        "input": torch.randn(M, K),
        "qdata": qdata if packs else torch.randint(-128, 128, (M, K), dtype=torch.int8),
        "packed_weight": packed,
        "packed_weights": [packed, packed.clone()],
        "weight_scales": [torch.rand(N), torch.rand(N)],
        "biases": [torch.randn(N), torch.randn(N)],
        "weight_scale": torch.rand(N),
        "bias": torch.randn(N),
        "act_scale": torch.rand(M),
        "act_zero_point": torch.randint(-128, 128, (M,), dtype=torch.int32),
        "input_scale": torch.tensor([0.1]),
        "input_zero_point": torch.tensor([3], dtype=torch.int8),
        "output_scale": torch.tensor([0.1]),
        "output_zero_point": torch.tensor([3], dtype=torch.int8),
        "scale": scale,
        "zero_point": torch.zeros(N, K // GROUP, dtype=torch.int8),
        "rows": torch.tensor([0, N - 1, 3]),
        "symmetric": False,
        "per_token": True,
        "output_dtype": torch.int8 if static else torch.float32,
        "output_min": -1.0,
        "output_max": 1.0,
        "kernel": "",
        "forced": "",
        "n": [N, N] if shared else N,
        "k": K,
        "group_size": GROUP,
        "float_scales": True,
        "zero_points": False,
        "full_range": False,
    }


def misaligned(tensor: Tensor) -> Tensor:
    """A copy whose memory begins one byte behind where its elements want it."""
    memory = bytearray(tensor.numel() * tensor.element_size() + 1)
    copy = torch.frombuffer(memory, dtype=torch.uint8, offset=1)
    copy.copy_(tensor.contiguous().flatten().view(torch.uint8))
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=1).reshape(tensor.shape)


@st.composite
def arbitrary_tensors(draw: st.DrawFn) -> Tensor:
    """Of any type, shape and arrangement."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.sampled_from((0, 1, 2, M, N, K, 3)), max_size=4))
    bits = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    tensor = bits.view(dtype).reshape(shape) if dtype != torch.bool else bits[..., 0] > 127
    for _ in range(draw(st.integers(0, 2))):
        if tensor.dim():
            tensor = draw(
                st.sampled_from(
                    (
                        tensor,
                        tensor.transpose(0, -1),
                        tensor[..., :1],
                        tensor[..., ::2],
                        tensor.unsqueeze(0),
                        tensor.sum(),
                    )
                    if dtype not in (torch.float8_e4m3fn, torch.bool)
                    else (tensor, tensor.transpose(0, -1), tensor[..., :1])
                )
            )
    return tensor


@st.composite
def changed_tensors(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """The tensor that is right, but for something."""
    kind = draw(st.integers(0, 14))
    if kind == 0:
        return draw(arbitrary_tensors())
    if kind == 1:
        return tensor.to(draw(st.sampled_from(DTYPES)))
    if kind == 2 and tensor.numel():
        return misaligned(tensor)
    if kind == 3:
        return tensor.to("meta")
    if kind == 4 and tensor.dim():
        return tensor[..., : draw(st.integers(0, 2 * K))]
    if kind == 5:
        return tensor.repeat_interleave(2, 0)[::2] if tensor.dim() else tensor
    if kind == 6:
        return tensor.expand(draw(st.sampled_from((1, 2, 1 << 40, 1 << 50))), *tensor.shape)
    if kind == 7:
        return tensor.transpose(0, -1) if tensor.dim() else tensor
    if kind == 8:
        return tensor.flatten()
    if kind == 9:
        return tensor.to_sparse() if tensor.dim() else tensor
    if kind == 10:
        return tensor.reshape([1] * draw(st.sampled_from((1, 3, 63, 70))) + [*tensor.shape])
    if kind == 11:
        return torch.cat([tensor, tensor]) if tensor.dim() else tensor
    # Other content in place of what was there.
    copy = tensor.clone()
    if not copy.numel() or copy.is_complex():
        return copy
    flat = copy.flatten()
    values: tuple[float, ...] = FLOATS if copy.is_floating_point() else (-128, -1, 0, 1, 127, 255, 1 << 31, 1 << 62)
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, flat.numel() - 1) if kind == 12 else st.integers(0, min(255, flat.numel() - 1)))
        value = torch.tensor(draw(st.sampled_from(values)))
        flat[at] = value.to(flat.dtype)
    return flat.reshape(copy.shape)


def changed(draw: st.DrawFn, kind: str, value: Any) -> Any:
    """Another value for an argument of this type."""
    if isinstance(value, list):
        if draw(st.booleans()):
            return value[:1] * draw(st.integers(0, 3))
        at = draw(st.integers(0, len(value) - 1))
        element = kind.removeprefix("List[").removesuffix("]")
        return [*value[:at], changed(draw, element, value[at]), *value[at + 1 :]]
    optional = kind.startswith("Optional")
    if optional and draw(st.booleans()):
        return None
    if "Tensor" in kind:
        return draw(changed_tensors(value))
    if isinstance(value, torch.dtype):
        return draw(st.sampled_from(DTYPES))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.sampled_from(INTEGERS) | st.integers(-(1 << 63), (1 << 63) - 1))
    if isinstance(value, float):
        return draw(st.sampled_from(FLOATS))
    return draw(st.sampled_from(STRINGS) | st.text(max_size=40))


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """An op, and arguments some of which are wrong."""
    op = draw(st.sampled_from(sorted(OPS)))
    torch.manual_seed(draw(st.integers(0, 3)))
    right = right_arguments(op)
    arguments = {argument.name: right[argument.name] for argument in OPS[op]._schema.arguments}
    kinds = {argument.name: str(argument.type) for argument in OPS[op]._schema.arguments}
    if arguments:
        for name in draw(st.lists(st.sampled_from(sorted(arguments)), max_size=3, unique=True)):
            arguments[name] = changed(draw, kinds[name], arguments[name])
    return op, arguments


def described(op: str, arguments: dict[str, Any]) -> str:
    def of(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(of, value))}]"
        if not isinstance(value, Tensor):
            return repr(value)
        strides = "" if value.layout != torch.strided else f" strides {value.stride()}"
        return f"{value.dtype} {tuple(value.shape)}{strides} on {value.device}"

    return f"{op}({', '.join(f'{name}={of(value)}' for name, value in arguments.items())})"


def outcome(op: str, arguments: dict[str, Any]) -> str:
    """Calls the op; returns what became of it, in a word.

    Raises:
        AssertionError: if it refused in another way than it should.
    """
    try:
        result = _ops.call(OPS[op], **arguments)
    except (ValueError, NotImplementedError, MemoryError) as error:
        assert str(error), "it does not say why"
        return "refused"
    except (RuntimeError, TypeError, OverflowError) as error:
        assert OF_TORCH.search(str(error)), f"{type(error).__name__}: {error}"
        return "refused by torch"
    for tensor in result if isinstance(result, list | tuple) else (result,):
        if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
            tensor.clone()  # all of it is there
    return "served"


def main() -> int:
    """Make calls for so many seconds; a wrong one ends with its arguments and an error."""
    end = time.monotonic() + float(sys.argv[1])
    outcomes: Counter[str] = Counter()
    ops: Counter[str] = Counter()
    with tempfile.NamedTemporaryFile("w", prefix="last-call-", delete=False) as last:
        print(f"the last call is in {last.name}", flush=True)

        @settings(
            max_examples=500,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            verbosity=Verbosity.quiet,
            suppress_health_check=[*HealthCheck],
        )
        @given(calls())
        def attempt(call: Call) -> None:
            last.seek(0)
            last.truncate()
            last.write(described(*call))
            last.flush()
            became = outcome(*call)
            outcomes[became] += 1
            ops[call[0]] += became != "refused by torch"

        rounds = 0
        while time.monotonic() < end:
            try:
                seed(rounds)(attempt)()
            except Exception as error:
                print(f"{Path(last.name).read_text()}\n{type(error).__name__}: {error}", flush=True)
                return 1
            rounds += 1
    Path(last.name).unlink()
    made = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    print(f"{outcomes.total()} calls of {len(ops)} ops: {made}", flush=True)
    if missing := {*OPS} - {op for op, count in ops.items() if count}:
        print(f"not one call reached {', '.join(sorted(missing))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
