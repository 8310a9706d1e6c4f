"""The packed tensor: what it holds, what it computes, how it is copied, and what it refuses."""

import copy
import dataclasses
import io
import pickle
from itertools import product

import cases
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from ao_arm import ACLPackedLayout, ACLPackedTensor, reference
from ao_arm.quantize import quantize_weight, quantize_weight_in_groups

N, K = cases.LAYER

EACH_LAYOUT = pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=cases.LAYOUTS)
EACH_SCHEME = pytest.mark.parametrize("layout", cases.SCHEMES.values(), ids=cases.SCHEMES)
EACH_LAYOUT_AND_KERNEL = pytest.mark.parametrize(
    ("layout", "kernel"),
    [
        pytest.param(layout, kernel, id=f"{name}-{kernel}")
        for name, layout in cases.LAYOUTS.items()
        for kernel in cases.kernels_for(layout)
    ],
    indirect=["kernel"],
)
EACH_DTYPE = pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)


def packed(
    n: int = N, k: int = K, layout: ACLPackedLayout | None = None, dtype: torch.dtype = torch.float32
) -> ACLPackedTensor:
    return cases.packed(torch.randn(n, k, dtype=dtype), layout)


# --- linear ---


@EACH_LAYOUT_AND_KERNEL
@EACH_DTYPE
def test_linear_equals_the_reference(layout: ACLPackedLayout, dtype: torch.dtype, kernel: str) -> None:
    weight = packed(layout=layout, dtype=dtype)
    assert weight.kernel == kernel
    for shape, bias in product([(K,), (5, K), (2, 3, K)], [None, torch.randn(N), torch.randn(N, dtype=dtype)]):
        x = torch.randn(shape, dtype=dtype)
        actual = linear(x, weight, bias)
        assert actual.shape == (*shape[:-1], N)
        cases.assert_by_reference(actual, x, weight, bias, f"input {shape}")


def test_linear_is_near_the_float_layer() -> None:
    """Int8 keeps some forty decibels, 4 bits some eighteen; far fewer would mean that something is swapped or scaled
    twice."""
    weight, x = torch.randn(256, K), torch.randn(64, K)
    exact = linear(x.double(), weight.double())
    for layout in cases.LAYOUTS.values():
        sqnr = cases.sqnr(exact, linear(x, cases.packed(weight, layout)))
        assert sqnr > (16 if layout.is_grouped else 33), f"{layout}: {sqnr:.1f} dB"


@EACH_SCHEME
def test_linear_takes_keywords(layout: ACLPackedLayout) -> None:
    weight, x, bias = packed(layout=layout), torch.randn(5, K), torch.randn(N)
    expected = linear(x, weight, bias)
    for name, actual in {
        "weight=": linear(x, weight=weight, bias=bias),
        "all": linear(input=x, weight=weight, bias=bias),
        "bias=": linear(x, weight, bias=bias),
    }.items():
        assert cases.same_bits(actual, expected), name
    assert cases.same_bits(linear(x, weight=weight), linear(x, weight, None))


@EACH_SCHEME
def test_inputs_of_another_dtype_than_the_weight_keep_theirs(layout: ACLPackedLayout) -> None:
    weight = packed(layout=layout, dtype=torch.float32)
    for dtype in cases.FLOATS:
        x = torch.randn(3, K, dtype=dtype)
        cases.assert_by_reference(linear(x, weight), x, weight, case=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
@EACH_SCHEME
def test_autocast_gives_its_dtype(layout: ACLPackedLayout, dtype: torch.dtype) -> None:
    weight, x, bias = packed(layout=layout), torch.randn(5, K), torch.randn(N)
    with torch.autocast("cpu", dtype):
        outputs = {
            "linear": linear(x, weight, bias),
            "linear of its dtype": linear(x.to(dtype), weight, bias),
            "x @ w.t()": x @ weight.t(),
        }
    for name, output in outputs.items():
        assert output.dtype == dtype, name
    cases.assert_by_reference(outputs["linear"], x.to(dtype), weight, bias)
    assert linear(x, weight).dtype == torch.float32


@EACH_SCHEME
def test_inputs_that_want_gradients_are_served(layout: ACLPackedLayout) -> None:
    weight, x = packed(layout=layout), torch.randn(5, K)
    assert cases.same_bits(linear(x.clone().requires_grad_(), weight).detach(), linear(x, weight))
    with torch.inference_mode():
        cases.assert_by_reference(linear(x, weight).clone(), x, weight)


# --- products with the transpose ---


@EACH_SCHEME
def test_products_with_the_transpose(layout: ACLPackedLayout) -> None:
    weight, x = packed(layout=layout), torch.randn(5, K)
    expected, bias = linear(x, weight), torch.randn(N)
    for name, actual in {
        "x @ w.t()": x @ weight.t(),
        "matmul": torch.matmul(x, weight.t()),
        "mm": torch.mm(x, weight.t()),
        "3-D @": (x[None] @ weight.t())[0],
        "addmm of zeros": torch.addmm(torch.zeros(N), x, weight.t()),
        "t().t()": linear(x, weight.t().t()),
    }.items():
        assert cases.same_bits(actual, expected), name
    assert cases.same_bits(x[0] @ weight.t(), linear(x[0], weight)), "1-D @"
    for name, actual in {
        "addmm": torch.addmm(bias, x, weight.t()),
        "addmm of a matrix": torch.addmm(bias.expand(5, N), x, weight.t()),
        "addmm of a row": torch.addmm(bias[None], x, weight.t()),
    }.items():
        cases.assert_by_reference(actual, x, weight, bias, name)  # a matrix is added to what has been rounded


def test_the_transpose_shows_itself_transposed() -> None:
    weight = packed()
    assert weight.t().shape == (K, N)
    assert torch.equal(weight.t().dequantize(), weight.dequantize().t())
    assert weight.t().t().shape == (N, K)
    assert f"shape=({K}, {N})" in repr(weight.t())


@pytest.mark.parametrize("k", [N, K], ids=["square", "not square"])
def test_other_products_are_refused_by_name(k: int) -> None:
    weight, x = packed(N, k), torch.randn(k, N)
    for product_of in (
        lambda: x @ weight,
        lambda: weight @ x,
        lambda: torch.mm(x, weight),
        lambda: torch.addmm(torch.zeros(k), x, weight),
        lambda: torch.addmm(torch.zeros(N), torch.zeros(5, k), weight.t(), alpha=2),
        lambda: torch.addmm(torch.zeros(N), torch.zeros(5, k), weight.t(), beta=0.5),
        lambda: linear(torch.zeros(5, N), weight.t()),
        lambda: linear(weight, torch.zeros(5, k)),
    ):
        with pytest.raises(NotImplementedError, match="ACLPackedTensor"):
            product_of()
    with pytest.raises(NotImplementedError, match=r"x @ w.t\(\) or F.linear\(x, w\) only; dequantize\(\)"):
        x @ weight


@pytest.mark.parametrize(
    "use",
    [lambda w: w + 1, lambda w: w * 2, lambda w: w.sum(), lambda w: w.view(-1), lambda w: torch.relu(w)],
    ids=["add", "multiply", "sum", "view", "relu"],
)
def test_what_a_packed_tensor_cannot_do_is_refused(use) -> None:
    with pytest.raises(NotImplementedError, match=r"ACLPackedTensor.*aten\."):
        use(packed())


# --- what it holds ---


def quantized(weight: Tensor, layout: ACLPackedLayout) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a layout makes of a weight: integers, scales and zero points."""
    if not layout.is_grouped:
        return *quantize_weight(weight, layout.weight_granularity == "per_channel"), None
    symmetric, scale_dtype = layout.weight_mapping == "symmetric", getattr(torch, layout.scale_dtype)
    return quantize_weight_in_groups(weight, layout.group_size, symmetric, scale_dtype)


def dequantized(qdata: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """(q - zero_point) * scale, with one scale, n or (n, groups)."""
    scale = scale.float().reshape(len(scale), -1, 1)
    groups = qdata.float().unflatten(1, (scale.shape[1], -1))
    return ((groups if zero_point is None else groups - zero_point.float()[..., None]) * scale).flatten(1)


@EACH_LAYOUT_AND_KERNEL
@EACH_DTYPE
def test_the_packed_values_are_those_that_were_quantized(
    layout: ACLPackedLayout, dtype: torch.dtype, kernel: str
) -> None:
    original = torch.randn(N, K, dtype=dtype)
    qdata, scale, zero_point = quantized(original, layout)
    weight = cases.packed(original, layout)
    assert weight.kernel == kernel
    unpacked, plain_scale, plain_zero_point = weight.get_plain()
    assert torch.equal(unpacked, qdata)
    assert cases.same_bits(plain_scale, scale)
    assert cases.same_bits(weight.scale, scale.expand(N) if scale.dim() == 1 else scale)
    for found in (plain_zero_point, weight.zero_point):
        assert found is None if zero_point is None else torch.equal(found, zero_point)
    exact = dequantized(qdata, scale, zero_point)
    assert cases.same_bits(weight.dequantize(), exact.to(dtype))
    assert cases.same_bits(weight.dequantize(torch.float32), exact)
    assert weight.get_layout() == layout


def test_it_shows_shape_and_dtype_of_the_weight() -> None:
    for dtype in cases.FLOATS:
        weight = packed(dtype=dtype)
        assert (weight.shape, weight.dtype, weight.device.type) == ((N, K), dtype, "cpu")
        assert not weight.requires_grad


@EACH_LAYOUT_AND_KERNEL
def test_repr_names_shape_scheme_and_kernel(layout: ACLPackedLayout, kernel: str) -> None:
    text = repr(packed(layout=layout))
    words = [layout.activation_mapping, layout.activation_granularity]
    if layout.is_grouped:
        words += [f"{layout.weight_mapping} groups of {layout.group_size}", f"{layout.scale_dtype} scales"]
    else:
        words += [layout.activation_dtype, layout.weight_granularity]
    for part in (f"({N}, {K})", layout.scheme.replace("_", " "), *words, kernel, "float32"):
        assert part in text, f"no {part} in {text}"


@pytest.mark.parametrize(("n", "k"), [(768, 768)] if cases.EMULATED_CPU else [(768, 768), (3072, 768), (769, 1024)])
def test_packing_adds_no_more_than_a_twentieth(n: int, k: int, kernel: str) -> None:
    weight = packed(n, k)
    assert weight.packed_weight.nbytes <= 1.05 * n * k
    assert weight.nbytes <= 1.05 * n * k
    assert weight.nbytes == weight.packed_weight.nbytes + weight.scale.nbytes


@pytest.mark.parametrize(("group_size", "most"), [(32, 1.14), (64, 1.075), (128, 1.045)])
def test_groups_add_a_few_percent_to_the_nibbles(group_size: int, most: float) -> None:
    weight = packed(768, 768, cases.grouped(group_size))
    assert weight.nbytes == weight.packed_weight.nbytes
    assert weight.nbytes <= most * 768 * 768 / 2


# --- from_plain ---


def test_from_plain_packs_what_it_is_given(kernel: str) -> None:
    qdata, scale = cases.int8_values(N, K), torch.rand(N) + 0.01
    for name, given in {"(n,)": scale, "(n, 1)": scale[:, None], "float64": scale.double()}.items():
        weight = ACLPackedTensor.from_plain(qdata, given, None, ACLPackedLayout())
        assert torch.equal(weight.get_plain()[0], qdata), f"scale {name}"
        assert torch.equal(weight.get_plain()[1], scale), f"scale {name}"
    assert weight.get_layout().weight_granularity == "per_channel"
    x = torch.randn(5, K)
    assert cases.same_bits(linear(x, weight), reference.linear_int8_dynamic(x, qdata, scale, None, True, True))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_from_plain_with_one_scale(shape: tuple[int, ...]) -> None:
    qdata = cases.int8_values(N, K)
    weight = ACLPackedTensor.from_plain(qdata, torch.full(shape, 0.25), None, ACLPackedLayout())
    assert weight.get_layout().weight_granularity == "per_tensor"
    assert weight.get_plain()[1].tolist() == [0.25]
    assert torch.equal(weight.dequantize(), qdata * 0.25)


@EACH_DTYPE
def test_from_plain_shows_the_dtype_asked_for(dtype: torch.dtype) -> None:
    weight = ACLPackedTensor.from_plain(cases.int8_values(N, K), torch.ones(N), None, ACLPackedLayout(), dtype)
    assert weight.dtype == dtype
    assert weight.dequantize().dtype == dtype


def test_from_plain_takes_zero_points_of_zero_and_any_arrangement() -> None:
    qdata = cases.int8_values(K, N).t()
    weight = ACLPackedTensor.from_plain(qdata, torch.ones(2 * N)[::2], torch.zeros(N), ACLPackedLayout())
    assert torch.equal(weight.get_plain()[0], qdata)


@pytest.mark.parametrize("layout", [wanted for wanted in cases.LAYOUTS.values() if wanted.is_static], ids=str)
def test_from_plain_with_static_activations(layout: ACLPackedLayout) -> None:
    qdata, x, bias = cases.int8_values(N, K), torch.randn(5, K), torch.randn(N)
    scale = torch.rand(N if layout.weight_granularity == "per_channel" else 1) + 0.01
    given = cases.act_quantization(layout)
    weight = ACLPackedTensor.from_plain(qdata, scale, None, layout, torch.float32, *given)
    assert weight.get_layout() == layout
    expected = reference.linear_int8_static(x, qdata, scale.expand(N), bias, *given)
    assert cases.same_bits(linear(x, weight, bias), expected)


# --- from_plain of 4-bit weights ---


def plain_groups(group_size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, float16 scales and zero points of a weight (N, K), counted from 0 as GPTQ and AWQ do."""
    groups = (N, K // group_size)
    data = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    return data, (torch.rand(groups) * 0.1 + 0.01).half(), torch.randint(0, 16, groups, dtype=torch.uint8)


@pytest.mark.parametrize("group_size", [32, K], ids="group_size={}".format)
def test_groups_of_gptq_and_awq_are_kept_exactly(group_size: int) -> None:
    """float16 scales become float32 ones, as bfloat16 would round them."""
    data, scale, zero_point = plain_groups(group_size)
    weight = ACLPackedTensor.from_plain(data, scale, zero_point, cases.grouped(group_size), torch.float16)
    assert weight.get_layout() == cases.grouped(group_size, "asymmetric", "float32")
    q, s, z = weight.get_plain()
    assert torch.equal(q, (data.int() - 8).to(torch.int8)) and torch.equal(z, (zero_point.int() - 8).to(torch.int8))
    assert cases.same_bits(s, scale.float())
    assert cases.same_bits(weight.dequantize(torch.float32), dequantized(data, scale, zero_point))
    assert weight.dequantize().dtype == weight.dtype == torch.float16
    x, bias = torch.randn(5, K, dtype=torch.float16), torch.randn(N)
    cases.assert_near_the_reference(linear(x, weight, bias), x, (q, scale.float(), z), bias)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.float16, torch.bool], ids=cases.name_of)
def test_zero_points_of_any_dtype(dtype: torch.dtype) -> None:
    data, scale, zero_point = plain_groups()
    if dtype == torch.bool:
        zero_point.clamp_(max=1)
    weight = ACLPackedTensor.from_plain(data, scale, zero_point.to(dtype), cases.grouped(32))
    assert torch.equal(weight.dequantize(), dequantized(data, scale, zero_point))


def test_groups_without_zero_points() -> None:
    """uint8 counts from 0 without them; zero points that all say the middle make a symmetric weight."""
    data, scale, _ = plain_groups()
    signed, middle, zeros = (data.int() - 8).to(torch.int8), torch.full_like(scale, 8), torch.zeros_like(scale)
    for name, given, zero_point, mapping in (
        ("int8", signed, None, "symmetric"),
        ("int8, zeros", signed, zeros.int(), "symmetric"),
        ("uint8, middle", data, middle, "symmetric"),
        ("uint8", data, None, "asymmetric"),
        ("uint8, zeros", data, zeros, "asymmetric"),
    ):
        weight = ACLPackedTensor.from_plain(given, scale, zero_point, cases.grouped(32, "asymmetric"))
        assert weight.get_layout().weight_mapping == mapping, name
        expected = dequantized(signed if mapping == "symmetric" else data, scale)
        assert cases.same_bits(weight.dequantize(), expected), name


def test_scales_that_bfloat16_holds_are_kept_in_it() -> None:
    data, scale, zero_point = plain_groups()
    scale = scale.bfloat16()
    for given, layout, scale_dtype in (
        (scale, cases.grouped(32), "bfloat16"),
        (scale.double(), cases.grouped(32), "bfloat16"),
        (scale, cases.grouped(32, scale_dtype="float32"), "float32"),
    ):
        weight = ACLPackedTensor.from_plain(data, given, zero_point, layout)
        assert weight.get_layout().scale_dtype == scale_dtype
        assert cases.same_bits(weight.scale, scale.to(getattr(torch, scale_dtype)))


def test_groups_arranged_in_memory_in_any_way() -> None:
    data, scale, zero_point = plain_groups()
    expected = ACLPackedTensor.from_plain(data, scale, zero_point, cases.grouped(32))
    turned = [part.t().contiguous().t() for part in (data, scale, zero_point)]
    assert_same_weight(ACLPackedTensor.from_plain(*turned, cases.grouped(32)), expected)


INT8 = torch.int8
STATIC = dict(_layout=cases.SCHEMES["static"])
WRONG_PLAIN = {
    "float data": (ValueError, r"int8 matrix \(n, k\), not torch.float32", dict(data=torch.zeros(4, 6))),
    "uint8 data": (ValueError, "not torch.uint8", dict(data=torch.zeros(4, 6, dtype=torch.uint8))),
    "1-D data": (ValueError, r"of shape \(4,\)", dict(data=torch.zeros(4, dtype=INT8))),
    "3-D data": (ValueError, r"of shape \(1, 4, 6\)", dict(data=torch.zeros(1, 4, 6, dtype=INT8))),
    "-128": (ValueError, "data holds -128", dict(data=torch.full((4, 6), -128, dtype=INT8))),
    "k=0": (ValueError, "at least 1", dict(data=torch.zeros(4, 0, dtype=INT8))),
    "n=0": (ValueError, "at least 1", dict(data=torch.zeros(0, 6, dtype=INT8), scale=torch.ones(0))),
    "k above the int32 limit": (ValueError, "66311 at most", dict(data=torch.zeros(4, 66312, dtype=INT8))),
    "scales of another length": (ValueError, "1 or n = 4 elements, not 5", dict(scale=torch.ones(5))),
    "scales for groups": (ValueError, "1 or n = 4 elements, not 12: groups", dict(scale=torch.ones(4, 3))),
    "NaN scale": (ValueError, "scale must", dict(scale=torch.tensor([1.0, torch.nan, 1.0, 1.0]))),
    "infinite scale": (ValueError, "scale must", dict(scale=torch.tensor([1.0, torch.inf, 1.0, 1.0]))),
    "negative scale": (ValueError, "scale must", dict(scale=torch.tensor([1.0, -1.0, 1.0, 1.0]))),
    "scale of 0": (ValueError, "scale must", dict(scale=torch.zeros(1))),
    "integer scale": (ValueError, "scale must", dict(scale=torch.ones(4, dtype=torch.int32))),
    "zero point": (NotImplementedError, "zero points are not", dict(zero_point=torch.tensor([0, 0, 3, 0]))),
    "data on meta": (NotImplementedError, "data is on.*meta", dict(data=torch.zeros(4, 6, dtype=INT8, device="meta"))),
    "scale on meta": (NotImplementedError, "scale is on.*meta", dict(scale=torch.ones(4, device="meta"))),
    "integer dtype": (ValueError, "dtype must be float32", dict(dtype=INT8)),
    "act_scale of dynamic ones": (ValueError, "belong to static", dict(act_scale=torch.ones(1))),
    "act_zero_point of dynamic ones": (ValueError, "belong to static", dict(act_zero_point=torch.zeros(1, dtype=INT8))),
    "no act_scale": (ValueError, r"act_scale of int8_static.*float32 of shape \(1,\), not None", STATIC),
    "no act_zero_point": (
        ValueError,
        r"act_zero_point of .* must be torch.uint8 .*not None",
        dict(STATIC, act_scale=torch.ones(1)),
    ),
    "two act_scales": (
        ValueError,
        r"act_scale of .* not torch.float32 of shape \(2,\)",
        dict(STATIC, act_scale=torch.ones(2)),
    ),
    "float64 act_scale": (
        ValueError,
        "act_scale of .* not torch.float64",
        dict(STATIC, act_scale=torch.ones(1).double()),
    ),
    "int8 act_zero_point": (
        ValueError,
        "act_zero_point of .* must be torch.uint8 .* not torch.int8",
        dict(STATIC, act_scale=torch.ones(1), act_zero_point=torch.zeros(1, dtype=INT8)),
    ),
}


WRONG_GROUPS = {
    "float data": (
        ValueError,
        r"int8 in \[-8, 7\] or uint8 in \[0, 15\], not torch.float32",
        dict(data=torch.zeros(4, 96)),
    ),
    "int32 data": (ValueError, "not torch.int32", dict(data=torch.zeros(4, 96, dtype=torch.int32))),
    "1-D data": (ValueError, r"of shape \(4,\)", dict(data=torch.zeros(4, dtype=INT8))),
    "int8 8": (
        ValueError,
        r"data must lie in \[-8, 7\], but .* from 8 to 8",
        dict(data=torch.full((4, 96), 8, dtype=INT8)),
    ),
    "int8 -9": (
        ValueError,
        r"data must lie in \[-8, 7\], but .* from -9",
        dict(data=torch.full((4, 96), -9, dtype=INT8)),
    ),
    "uint8 16": (
        ValueError,
        r"data must lie in \[0, 15\], but .* from 16 to 16",
        dict(data=torch.full((4, 96), 16, dtype=torch.uint8)),
    ),
    "no group size that divides k": (
        ValueError,
        "k = 97 is no multiple of the group size 32; .*97 .whole rows",
        dict(data=torch.zeros(4, 97, dtype=INT8)),
    ),
    "a group size that no kernel has": (
        ValueError,
        "group size 48 is neither a multiple of 32 nor k = 96",
        dict(_layout=cases.grouped(48), scale=torch.ones(4, 2)),
    ),
    "n=0": (ValueError, "at least 1", dict(data=torch.zeros(0, 96, dtype=INT8), scale=torch.ones(0, 3))),
    "k=0": (ValueError, "at least 1", dict(data=torch.zeros(4, 0, dtype=INT8), scale=torch.ones(4, 0))),
    "a scale for each row": (
        ValueError,
        r"scale must have the shape .* = \(4, 3\), not \(4,\)",
        dict(scale=torch.ones(4)),
    ),
    "scales transposed": (ValueError, r"= \(4, 3\), not \(3, 4\)", dict(scale=torch.ones(3, 4))),
    "scale of 0": (ValueError, "scale must hold finite floats other than 0", dict(scale=torch.zeros(4, 3))),
    "NaN scale": (ValueError, "scale must hold", dict(scale=torch.full((4, 3), torch.nan))),
    "infinite scale": (ValueError, "scale must hold", dict(scale=torch.full((4, 3), torch.inf))),
    "scale that float32 makes 0": (ValueError, "scale must hold", dict(scale=torch.full((4, 3), 1e-300).double())),
    "integer scale": (ValueError, "scale must hold", dict(scale=torch.ones(4, 3, dtype=torch.int32))),
    "zero points of another shape": (
        ValueError,
        r"zero_point must have the shape of scale, \(4, 3\), not \(4, 1\)",
        dict(zero_point=torch.zeros(4, 1)),
    ),
    "zero points out of range": (
        ValueError,
        r"zero_point must lie in \[-8, 7\], but .* from 8",
        dict(zero_point=torch.full((4, 3), 8)),
    ),
    "fractions as zero points": (ValueError, "zero_point must hold integers", dict(zero_point=torch.full((4, 3), 1.5))),
    "NaN as a zero point": (
        ValueError,
        "zero_point must hold integers",
        dict(zero_point=torch.full((4, 3), torch.nan)),
    ),
    "data on meta": (NotImplementedError, "data is on.*meta", dict(data=torch.zeros(4, 96, dtype=INT8, device="meta"))),
    "zero points on meta": (
        NotImplementedError,
        "zero_point is on.*meta",
        dict(zero_point=torch.zeros(4, 3, device="meta")),
    ),
    "act_scale": (ValueError, "belong to static", dict(act_scale=torch.ones(1))),
}


@pytest.mark.parametrize("wrong", WRONG_GROUPS)
def test_from_plain_of_groups_refuses(wrong: str) -> None:
    error, message, changes = WRONG_GROUPS[wrong]
    data, scale = torch.zeros(4, 96, dtype=INT8), torch.ones(4, 3)
    arguments = dict(data=data, scale=scale, zero_point=None, _layout=cases.grouped(32))
    with pytest.raises(error, match=message):
        ACLPackedTensor.from_plain(**{**arguments, **changes})


@pytest.mark.parametrize("wrong", WRONG_PLAIN)
def test_from_plain_refuses(wrong: str) -> None:
    error, message, changes = WRONG_PLAIN[wrong]
    arguments = dict(
        data=torch.zeros(4, 6, dtype=INT8), scale=torch.ones(4), zero_point=None, _layout=ACLPackedLayout()
    )
    with pytest.raises(error, match=message):
        ACLPackedTensor.from_plain(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.ones(4, 4, dtype=torch.int32), ValueError, "float32, bfloat16 or float16, not torch.int32"),
        (torch.ones(4, 4, dtype=torch.float64), ValueError, "not torch.float64"),
        (torch.ones(4), ValueError, r"matrix \(n, k\).*\(4,\)"),
        (torch.ones(2, 3, 4), ValueError, r"matrix \(n, k\).*\(2, 3, 4\)"),
        (torch.ones(0, 4), ValueError, "at least 1"),
        (torch.ones(4, 0), ValueError, "at least 1"),
        (torch.tensor([[1.0, torch.nan]]), ValueError, r"nan at \[0, 1\]"),
        (torch.tensor([[1.0], [-torch.inf]]), ValueError, r"-inf at \[1, 0\]"),
        (torch.ones(1, 66312), ValueError, "66311 at most"),
        (torch.ones(4, 4, device="meta"), NotImplementedError, "load real values first"),
    ],
    ids=["int32", "float64", "1-D", "3-D", "n=0", "k=0", "NaN", "infinity", "k above the int32 limit", "meta"],
)
def test_from_hp_refuses(weight: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ACLPackedTensor.from_hp(weight)


def test_from_hp_refuses_other_devices() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # makes tensors that say they are on a GPU where there is none
        weight = torch.empty(4, 4, device="cuda")
    with pytest.raises(NotImplementedError, match=r"device cuda.*\.cpu\(\)"):
        ACLPackedTensor.from_hp(weight)


GROUPED = dataclasses.asdict(cases.grouped(32))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ACLPackedLayout)])
def test_layouts_accept_known_words_only(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be one of .*not 'none such'"):
        ACLPackedLayout(**{field: "none such"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(activation_granularity="per_token"), r"activation_granularity must be one of \('per_tensor',\)"),
        (dict(activation_dtype="uint8"), "uint8 activations have a zero point: activation_mapping must be"),
        (dict(group_size=32), "group_size must be one of"),
        (dict(scheme="int8_dynamic", activation_dtype="uint8"), "activation_dtype must be one of"),
        (dict(scheme="int4_grouped"), "activation_mapping must be one of .'asymmetric',. for int4_grouped"),
        (dict(GROUPED, weight_granularity="per_channel"), r"weight_granularity must be one of \('per_group',\)"),
        (dict(GROUPED, group_size=0), "group_size must be at least 1 for int4_grouped, not 0"),
        (dict(GROUPED, scale_dtype="float16"), r"scale_dtype must be one of \('bfloat16', 'float32'\)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_layouts_that_contradict_themselves(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ACLPackedLayout(**{"scheme": "int8_static", "activation_granularity": "per_tensor", **fields})


def test_layouts_compare_and_hash_by_value() -> None:
    assert ACLPackedLayout() == ACLPackedLayout("symmetric", "per_token", "per_channel")
    assert len({*cases.LAYOUTS.values(), ACLPackedLayout()}) == len(cases.LAYOUTS)


# --- conversions and copies ---


def assert_same_weight(actual: ACLPackedTensor, expected: ACLPackedTensor) -> None:
    assert type(actual) is ACLPackedTensor
    assert (actual.shape, actual.dtype, actual.get_layout()) == (expected.shape, expected.dtype, expected.get_layout())
    for ours, theirs in (
        *zip(actual.get_plain(), expected.get_plain(), strict=True),
        (actual.act_scale, expected.act_scale),
        (actual.act_zero_point, expected.act_zero_point),
    ):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.dtype == theirs.dtype and torch.equal(ours, theirs))


COPIES = {
    "detach": lambda w: w.detach(),
    "clone": lambda w: w.clone(),
    "contiguous": lambda w: w.contiguous(),
    "copy": lambda w: copy.copy(w),
    "deepcopy": lambda w: copy.deepcopy(w),
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
    "parameter": lambda w: torch.nn.Parameter(w, requires_grad=False).detach(),
}


@pytest.mark.parametrize("way", COPIES)
@EACH_LAYOUT
def test_copies_are_the_same_weight(layout: ACLPackedLayout, way: str) -> None:
    weight, x = packed(layout=layout, dtype=torch.bfloat16), torch.randn(5, K)
    copied = COPIES[way](weight)
    assert_same_weight(copied, weight)
    assert cases.same_bits(linear(x, copied), linear(x, weight))
    transposed = COPIES[way](weight.t())
    assert transposed.shape == (K, N)
    assert cases.same_bits(x @ transposed, linear(x, weight))


@pytest.mark.parametrize("way", ["clone", "deepcopy", "pickle"])
@EACH_SCHEME
def test_copies_have_memory_of_their_own(layout: ACLPackedLayout, way: str) -> None:
    weight = packed(layout=layout)
    copied = COPIES[way](weight)
    assert list(copied._inner()) == list(weight._inner())
    for name, inner in weight._inner().items():
        assert copied._inner()[name].data_ptr() != inner.data_ptr(), name


def slice_of(weight: ACLPackedTensor, rows: slice, columns: slice) -> ACLPackedTensor:
    """The slice, made of plain contents."""
    layout, (qdata, *others) = weight.get_layout(), weight.get_plain()
    places: tuple[slice, ...] = (rows,)
    if layout.is_grouped:
        places = rows, slice(columns.start // layout.group_size, columns.stop // layout.group_size)
    scale, zero_point = (part if part is None or part.numel() == 1 else part[places] for part in others)
    return ACLPackedTensor.from_plain(
        qdata[rows, columns], scale, zero_point, layout, torch.float32, *cases.act_quantization(layout)
    )


@EACH_LAYOUT
def test_slices_are_weights_of_their_own(layout: ACLPackedLayout) -> None:
    weight, x = packed(layout=layout), torch.randn(5, K)
    before = linear(x, weight)
    low, high = {0: (7, 50), 32: (32, 96), K: (0, K)}[layout.group_size]
    rows, all_rows, columns, all_columns = slice(3, 20), slice(0, N), slice(low, high), slice(0, K)
    for name, part, *places in (
        ("rows", weight[3:20], rows, all_columns),
        ("columns", weight[:, low:high], all_rows, columns),
        ("columns counted from the end", weight[:, low - K : high], all_rows, columns),
        ("columns of the transpose", weight.t()[:, 3:20].t(), rows, all_columns),
        ("rows of the transpose", weight.t()[low:high].t(), all_rows, columns),
        ("some of both", weight[3:20, low:high], rows, columns),
    ):
        expected = slice_of(weight, *places)
        assert_same_weight(part, expected)
        assert cases.same_bits(linear(x[:, places[1]], part), linear(x[:, places[1]], expected)), name
        if part.shape == weight.shape:  # torch cuts nothing then, and this is a view
            continue
        for inner in part._inner().values():
            inner.zero_()
        assert cases.same_bits(linear(x, weight), before), f"{name}: it is the weight's memory"


@pytest.mark.parametrize(("start", "stop"), [(0, 16), (16, 96), (31, 64), (64, 95), (-33, 96)], ids=str)
def test_slices_of_part_of_a_group_are_refused(start: int, stop: int) -> None:
    for group_size in (32, K):
        weight = packed(layout=cases.grouped(group_size))
        for cut in (lambda w: w[:, start:stop], lambda w: w.t()[start:stop]):
            with pytest.raises(ValueError, match=f"of 4-bit weights must be of whole groups of {group_size}, not from"):
                cut(weight)
    with pytest.raises(ValueError, match="whole groups of 32, not from 0 to 96 in steps of 2"):
        packed(layout=cases.grouped(32))[:, ::2]


@EACH_LAYOUT
def test_values_are_copied_between_weights_of_one_layout(layout: ACLPackedLayout) -> None:
    weight, other, x = packed(layout=layout), packed(layout=layout), torch.randn(5, K)
    if layout.is_static:
        other.act_scale.mul_(2)
        other.act_zero_point.add_(0 if layout.activation_mapping == "symmetric" else 1)
    address = weight.packed_weight.data_ptr()
    assert not torch.equal(linear(x, weight), linear(x, other))
    weight.copy_(other)
    assert cases.same_bits(linear(x, weight), linear(x, other))
    assert_same_weight(weight, other)
    assert weight.packed_weight.data_ptr() == address
    another = next(wanted for wanted in cases.LAYOUTS.values() if wanted.scheme != layout.scheme)
    with pytest.raises(ValueError, match=r"a weight with layout .* cannot be copied into one with"):
        weight.copy_(packed(layout=another))


@pytest.mark.parametrize("weights_only", [True, False], ids="weights_only={}".format)
@EACH_LAYOUT
def test_torch_save_and_load(layout: ACLPackedLayout, weights_only: bool) -> None:
    weight, file = packed(layout=layout, dtype=torch.float16), io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=weights_only)
    assert_same_weight(loaded.tensor_impl if hasattr(loaded, "tensor_impl") else loaded, weight)


@EACH_SCHEME
def test_pickles_do_not_depend_on_the_kernel(layout: ACLPackedLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that one kernel packed is packed again, by the kernel that is chosen where it is loaded."""
    original, x = torch.randn(N, K), torch.randn(5, K)
    for first, second in product(cases.kernels_for(layout), repeat=2):
        monkeypatch.setenv("AO_ARM_KERNEL", first)
        weight = cases.packed(original, layout)
        saved = pickle.dumps(weight)
        monkeypatch.setenv("AO_ARM_KERNEL", second)
        loaded = pickle.loads(saved)
        assert loaded.kernel == second
        assert_same_weight(loaded, weight)
        cases.assert_by_reference(linear(x, loaded), x, weight, case=f"{first} to {second}")


@EACH_DTYPE
@EACH_SCHEME
def test_to_another_dtype(layout: ACLPackedLayout, dtype: torch.dtype) -> None:
    weight, x = packed(layout=layout), torch.randn(5, K, dtype=dtype)
    converted = weight.to(dtype)
    assert (converted.dtype, converted.shape) == (dtype, weight.shape)
    assert torch.equal(converted.get_plain()[0], weight.get_plain()[0])
    assert cases.same_bits(converted.dequantize(), weight.dequantize().to(dtype))
    assert cases.same_bits(linear(x, converted), linear(x, weight))
    assert weight.dtype == torch.float32
    assert weight.t().to(dtype).shape == (K, N)
    assert weight.to(dtype).to(torch.float32).dequantize().dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool], ids=cases.name_of)
def test_to_a_dtype_that_is_no_float_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises((ValueError, NotImplementedError), match="dequantize"):
        packed().to(dtype)


def test_to_the_device_where_it_is_gives_itself() -> None:
    weight = packed()
    assert weight.to("cpu") is weight
    assert weight.cpu() is weight


@EACH_SCHEME
def test_on_the_meta_device_there_is_only_its_shape(layout: ACLPackedLayout) -> None:
    """As a model is before a checkpoint is loaded into it."""
    weight = packed(layout=layout).to("meta")
    assert (weight.shape, weight.device.type) == ((N, K), "meta")
    assert "meta" in repr(weight)
    assert linear(torch.randn(5, K, device="meta"), weight).shape == (5, N)
    with pytest.raises(ValueError, match="input is on cpu but packed_weight is on meta"):
        linear(torch.randn(5, K), weight)
    for read in (weight.get_plain, weight.dequantize, lambda: weight.kernel, lambda: pickle.dumps(weight)):
        with pytest.raises(NotImplementedError, match="meta"):
            read()


# --- inputs that are already quantized ---


def test_static_layers_take_inputs_that_are_already_quantized() -> None:
    layout = cases.SCHEMES["static"]
    weight, x, (scale, zero_point) = packed(layout=layout), torch.randn(5, K), cases.act_quantization(layout)
    q = reference.quantize_static(x, scale, zero_point)
    assert cases.same_bits(linear(q, weight), linear(x, weight))
    weight.act_pre_scale = torch.rand(K)
    with pytest.raises(ValueError, match=r"act_pre_scale, for floats, but its input is torch.uint8"):
        linear(q, weight)


# --- wrong arguments ---

NOT_A_FLOAT = "input must be float32, bfloat16(,| or) float16"


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.ones(5, K, dtype=torch.int32), None, NOT_A_FLOAT),
        (torch.ones(5, K, dtype=torch.int8), None, NOT_A_FLOAT),
        (torch.ones(5, K, dtype=torch.float64), None, NOT_A_FLOAT),
        (torch.ones(5, K, dtype=torch.complex64), None, NOT_A_FLOAT),
        (torch.ones(5, K + 1), None, rf"\(5, {K + 1}\) .* \({N}, {K}\): its last dimension must be {K}"),
        (torch.ones(5, 0), None, f"must be {K}"),
        (torch.ones(()), None, rf"shape \(\) .* must be {K}"),
        (torch.ones(5, K), torch.ones(N + 1), rf"bias of shape \({N + 1}\) must have shape \({N}\)"),
        (torch.ones(5, K), torch.ones(1), rf"bias of shape \(1\) must have shape \({N}\)"),
        (torch.ones(5, K), torch.ones(1, N), rf"bias of shape \(1, {N}\) must have shape \({N}\)"),
        (torch.ones(5, K), torch.ones(()), rf"bias of shape \(\) must have shape \({N}\)"),
        (torch.ones(5, K), torch.ones(N, dtype=torch.int64), "bias must be float32, bfloat16 or float16"),
        (torch.ones(5, K, device="meta"), None, "input is on meta but packed_weight is on cpu"),
        (torch.ones(5, K), torch.ones(N, device="meta"), "bias is on meta"),
    ],
    ids=[
        *("int32 input", "int8 input", "float64 input", "complex input", "another k", "k=0", "0-D input"),
        *("longer bias", "bias of one", "2-D bias", "0-D bias", "integer bias", "input on meta", "bias on meta"),
    ],
)
@EACH_SCHEME
def test_linear_refuses_wrong_arguments_with_a_value_error(
    layout: ACLPackedLayout, x: Tensor, bias: Tensor | None, message: str
) -> None:
    weight = packed(layout=layout)
    with pytest.raises(ValueError, match=message):
        linear(x, weight, bias)
    with pytest.raises(ValueError, match=message):
        linear(x, weight=weight, bias=bias)
