"""What the tests have in common: the kernels of this CPU, sizes, values, and comparisons of floats by their bits."""

import io
import os
from collections.abc import Sequence
from itertools import product, zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor

import ao_arm
from ao_arm import ACLPackedLayout, ACLPackedTensor, packing, reference
from ao_arm.linear import quantize_to_127
from ao_arm.selftest.command import torch_threads as torch_threads

#: The CPU model of the emulated machine; empty on a real one.
EMULATED_CPU = os.environ.get("AO_ARM_EMULATED_CPU", "")

#: Emulation is some thirty times slower: one in this many of the values that a test goes over is taken there.
STEP = 5 if EMULATED_CPU else 1


def _runs_here(*problems: tuple[int, ...]) -> tuple[str, ...]:
    tables = [ao_arm.kernels.list(*problem) for problem in problems]
    return tuple(rows[0].id for rows in zip(*tables, strict=True) if not all(row.reasons for row in rows))


#: Every kernel that this CPU can run, the fastest of a family first; those for 4-bit weights.
KERNELS = _runs_here((768, 768), (33, 31), (1, 1))
INT4_KERNELS = _runs_here((768, 768, 32), (33, 31, 31))


#: Of kernels whose sources are another family's, compiled for other instructions, the family that they count to.
_SOURCES = {"sve": "neon"}


def _tried(kernels: Sequence[str]) -> tuple[str, ...]:
    """All; under emulation, where `kernel_test` tries all but what torch lends, the first of each family."""
    if not EMULATED_CPU:
        return tuple(kernels)
    fastest = {}
    for name in reversed(kernels):
        family, _, _ = name.partition("/")
        fastest[_SOURCES.get(family, family), name.endswith("_torch")] = name
    return tuple(name for name in kernels if name in fastest.values())


#: Those that tests of ops and tensors go over.
TRIED_KERNELS, TRIED_INT4_KERNELS = _tried(KERNELS), _tried(INT4_KERNELS)
#: All of them in pairs, as models with weights of both kinds are forced to take them.
KERNEL_PAIRS = tuple(
    f"{first or KERNELS[-1]},{second or INT4_KERNELS[-1]}" for first, second in zip_longest(KERNELS, INT4_KERNELS)
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

try:
    import torchao.dtypes.affine_quantized_tensor  # noqa: F401

    #: Whether this torchao (up to 0.17) has AffineQuantizedTensor, which then holds the packed weights of models.
    HAS_AQT = True
except ImportError:
    HAS_AQT = False

_T = TypeVar("_T")


def thinned(values: Sequence[_T]) -> list[_T]:
    """All values; under emulation the first, the last and some between."""
    return [*values[:-1:STEP], *values[-1:]]


def name_of(value: object) -> str:
    """Names dtypes as people do, for test ids."""
    return str(value).removeprefix("torch.")


def int8_values(*shape: int, least: int = -127) -> Tensor:
    """Random int8 values in [least, 127]: weights by default; activations reach down to -128."""
    return torch.randint(least, 128, shape, dtype=torch.int8)


def fits(kernel: str, *problem: int) -> bool:
    """Whether a kernel can serve a layer of this shape."""
    return any(row.id == kernel and not row.reasons for row in ao_arm.kernels.list(*problem))


def packed_in(layer: torch.nn.Module) -> ao_arm.ACLPackedTensor:
    """The packed weight of a layer that `quantize_` replaced the weight of."""
    packed = ao_arm.packed_weight_of(layer.weight)
    assert packed is not None, f"{layer} has no packed weight"
    return packed


def saved(value: Any) -> io.BytesIO:
    """What torch.save writes, to be read from the beginning."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def saved_and_loaded(model: torch.nn.Module) -> torch.nn.Module:
    """A whole model, written and read."""
    loaded: torch.nn.Module = torch.load(saved(model), weights_only=False)
    return loaded


#: The shape (n, k) of weights that have any of the layouts: groups of 32 and whole rows divide k.
LAYER = (40, 96)


def grouped(group_size: int, weight_mapping: str = "symmetric", scale_dtype: str = "bfloat16") -> ACLPackedLayout:
    """The layout of 4-bit weights."""
    return ACLPackedLayout(
        "asymmetric",
        weight_granularity="per_group",
        scheme="int4_grouped",
        group_size=group_size,
        weight_mapping=weight_mapping,
        scale_dtype=scale_dtype,
    )


def _layouts() -> dict[str, ACLPackedLayout]:
    activations = [
        *product(("symmetric", "asymmetric"), ("per_token", "per_tensor"), ("int8_dynamic",), ("int8",)),
        ("symmetric", "per_tensor", "int8_static", "int8"),
        ("asymmetric", "per_tensor", "int8_static", "int8"),
        ("asymmetric", "per_tensor", "int8_static", "uint8"),
    ]
    made = [
        ACLPackedLayout(mapping, activation, weight, scheme, dtype)
        for (mapping, activation, scheme, dtype), weight in product(activations, ("per_channel", "per_tensor"))
    ]
    kinds = product((32, LAYER[1]), ("symmetric", "asymmetric"), ("bfloat16", "float32"))
    made += [grouped(*kind) for kind in kinds]
    return {f"{layout.scheme} {layout.extra_repr()}": layout for layout in made}


#: Every layout, by a name for test ids.
LAYOUTS = _layouts()
#: One of each scheme, where more would show nothing new.
SCHEMES = {
    "dynamic": ACLPackedLayout(),
    "static": ACLPackedLayout("asymmetric", "per_tensor", "per_channel", "int8_static", "uint8"),
    "grouped": grouped(32, "asymmetric"),
}


def kernels_for(layout: ACLPackedLayout) -> tuple[str, ...]:
    """The kernels to try that can serve `LAYER` with this layout here."""
    problem = packing.problem_of(*LAYER, layout)
    tried = TRIED_INT4_KERNELS if layout.is_grouped else TRIED_KERNELS
    return tuple(kernel for kernel in tried if fits(kernel, *problem))


def act_quantization(layout: ACLPackedLayout) -> tuple[Tensor, ...]:
    """Scale and zero point of static activations that are standard normal; nothing for other layouts."""
    if not layout.is_static:
        return ()
    zero_point = 0 if layout.activation_mapping == "symmetric" else {"int8": -7, "uint8": 120}[layout.activation_dtype]
    return torch.tensor([0.035]), torch.tensor([zero_point], dtype=getattr(torch, layout.activation_dtype))


def packed(weight: Tensor, layout: ACLPackedLayout | None = None) -> ACLPackedTensor:
    """A float weight, packed; for standard normal activations if they are static."""
    layout = ACLPackedLayout() if layout is None else layout
    return ACLPackedTensor.from_hp(weight, layout, *act_quantization(layout))


def by_reference(x: Tensor, weight: ACLPackedTensor, bias: Tensor | None = None) -> Tensor:
    """What `linear(x, weight, bias)` has to give, whatever the scheme; kernels for 4-bit weights come near it."""
    qdata, scale, zero_point = weight.get_plain()
    layout = weight.get_layout()
    if layout.is_grouped:
        return reference.linear_qta8a_qga4w(x, qdata, scale, zero_point, bias)
    scale = scale.expand(qdata.shape[0])
    if layout.is_static:
        assert weight.act_scale is not None and weight.act_zero_point is not None
        return reference.linear_int8_static(x, qdata, scale, bias, weight.act_scale, weight.act_zero_point)
    if layout.activation_mapping == "symmetric_127":
        return reference.linear_int8_quantized(*quantize_to_127(x), None, qdata, scale, bias, x.dtype)
    symmetric, per_token = layout.activation_mapping == "symmetric", layout.activation_granularity == "per_token"
    return reference.linear_int8_dynamic(x, qdata, scale, bias, symmetric, per_token)


def assert_by_reference(
    actual: Tensor, x: Tensor, weight: ACLPackedTensor, bias: Tensor | None = None, case: object = ""
) -> None:
    """`actual` is what `linear(x, weight, bias)` has to give: bit for bit, or near it for 4-bit weights."""
    if weight.get_layout().is_grouped:
        assert_near_the_reference(actual, x, weight.get_plain(), bias)
    else:
        assert same_bits(actual, by_reference(x, weight, bias)), case


def assert_near_the_reference(
    actual: Tensor, x: Tensor, plain: tuple[Tensor, Tensor, Tensor | None], bias: Tensor | None = None, **others: Any
) -> None:
    """Each element is the rounded form of a number within the tolerance of the reference's."""
    act = {name: others[name] for name in ("act_scale", "act_zero_point") if name in others}
    wide = x if x.dtype == torch.int8 else x.float()
    expected = reference.linear_qta8a_qga4w(wide, *plain, bias, **others)
    dtype = torch.float32 if x.dtype == torch.int8 else x.dtype
    assert (actual.dtype, actual.shape) == (dtype, expected.shape)
    if x.numel() == 0:
        return
    n = actual.shape[-1]
    slack = reference.GROUPED_TOLERANCE * reference.magnitude_qta8a_qga4w(x, *plain, **act)
    if bias is not None:
        slack = slack + reference.GROUPED_TOLERANCE * bias.double().abs().max()
    actual, exact = actual.reshape(-1, n), expected.reshape(-1, n).double()
    assert torch.equal(actual.isnan(), exact.isnan())
    least, greatest = ((exact + sign * slack).to(dtype) for sign in (-1, 1))
    wrong = ~((least <= actual) & (actual <= greatest)) & ~exact.isnan()
    assert not bool(wrong.any()), (
        f"{int(wrong.sum())} of {wrong.numel()} differ, first at {wrong.nonzero()[0].tolist()}: "
        f"{actual[wrong][0].item()} for {exact[wrong][0].item()}"
    )


def sqnr(exact: Tensor, approximate: Tensor) -> float:
    """Signal to quantization noise, in dB."""
    exact = exact.double()
    return 10 * float(torch.log10(exact.square().mean() / (exact - approximate.double()).square().mean()))


def bits(values: Tensor) -> Tensor:
    """The bit patterns of floats; all NaN have one."""
    integer = torch.int32 if values.dtype == torch.float32 else torch.int16
    return torch.where(values.isnan(), torch.full_like(values, torch.nan), values).contiguous().view(integer)


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit; a NaN is a NaN."""
    return actual.dtype == expected.dtype and torch.equal(bits(actual), bits(expected))
