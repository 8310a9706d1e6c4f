"""The packed tensor: what it computes, what it holds, and what it refuses."""

from itertools import product

import cases
import pytest
import torch
from tensors import EACH_DTYPE, EACH_LAYOUT_AND_KERNEL, EACH_SCHEME, K, N, dequantized, packed
from torch import Tensor
from torch.nn.functional import linear

from ao_arm import ACLPackedLayout, reference
from ao_arm.quantize import quantize_weight, quantize_weight_in_groups

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


@pytest.mark.one_cpu
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


@pytest.mark.one_cpu
@EACH_SCHEME
def test_inputs_of_another_dtype_than_the_weight_keep_theirs(layout: ACLPackedLayout) -> None:
    weight = packed(layout=layout, dtype=torch.float32)
    for dtype in cases.FLOATS:
        x = torch.randn(3, K, dtype=dtype)
        cases.assert_by_reference(linear(x, weight), x, weight, case=dtype)


@pytest.mark.one_cpu
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


@pytest.mark.one_cpu
@EACH_SCHEME
def test_inputs_that_want_gradients_are_served(layout: ACLPackedLayout) -> None:
    weight, x = packed(layout=layout), torch.randn(5, K)
    assert cases.same_bits(linear(x.clone().requires_grad_(), weight).detach(), linear(x, weight))
    with torch.inference_mode():
        cases.assert_by_reference(linear(x, weight).clone(), x, weight)


# --- products with the transpose ---


@pytest.mark.one_cpu
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


@pytest.mark.one_cpu
def test_the_transpose_shows_itself_transposed() -> None:
    weight = packed()
    assert weight.t().shape == (K, N)
    assert torch.equal(weight.t().dequantize(), weight.dequantize().t())
    assert weight.t().t().shape == (N, K)
    assert f"shape=({K}, {N})" in repr(weight.t())


@pytest.mark.one_cpu
@torch.inference_mode()
def test_views_in_inference_mode() -> None:
    weight, x = packed(), torch.randn(5, K)
    assert cases.same_bits(x @ weight.t(), linear(x, weight))
    assert cases.same_bits(linear(x, weight.detach()), linear(x, weight))
    assert cases.same_bits(torch.cat([linear(x, part) for part in weight.split(20)], dim=1), linear(x, weight))
    assert cases.same_bits(torch.cat([linear(x, part) for part in weight.chunk(2)], dim=1), linear(x, weight))


@pytest.mark.one_cpu
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
    with pytest.raises(NotImplementedError, match=r"x @ w.t\(\) or F.linear\(x, w\) only\..*dequantize\(\)"):
        x @ weight


@pytest.mark.one_cpu
@pytest.mark.parametrize(
    "use",
    [lambda w: w + 1, lambda w: w * 2, lambda w: w.sum(), lambda w: w.view(-1), lambda w: torch.relu(w)],
    ids=["add", "multiply", "sum", "view", "relu"],
)
def test_what_a_packed_tensor_cannot_do_is_refused(use) -> None:
    with pytest.raises(NotImplementedError, match=r"aten\..*ACLPackedTensor"):
        use(packed())


# --- what it holds ---


def quantized(weight: Tensor, layout: ACLPackedLayout) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a layout makes of a weight: integers, scales and zero points."""
    if not layout.is_grouped:
        return *quantize_weight(weight, layout.weight_granularity == "per_channel"), None
    symmetric, scale_dtype = layout.weight_mapping == "symmetric", getattr(torch, layout.scale_dtype)
    return quantize_weight_in_groups(weight, layout.group_size, symmetric, scale_dtype)


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


@pytest.mark.one_cpu
def test_it_shows_shape_and_dtype_of_the_weight() -> None:
    for dtype in cases.FLOATS:
        weight = packed(dtype=dtype)
        assert (weight.shape, weight.dtype, weight.device.type) == ((N, K), dtype, "cpu")
        assert not weight.requires_grad


@pytest.mark.x86
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


@pytest.mark.parametrize(("n", "k"), [(192, 768)] if cases.EMULATED_CPU else [(768, 768), (3072, 768), (769, 1024)])
def test_packing_adds_no_more_than_a_twentieth(n: int, k: int, kernel: str) -> None:
    weight = packed(n, k)
    assert weight.packed_weight.nbytes <= 1.05 * n * k
    assert weight.nbytes <= 1.05 * n * k
    assert weight.nbytes == weight.packed_weight.nbytes + weight.scale.nbytes


@pytest.mark.parametrize(("group_size", "most"), [(32, 1.14), (64, 1.075), (128, 1.045)])
def test_groups_add_a_few_percent_to_the_nibbles(group_size: int, most: float) -> None:
    n = 384 if cases.EMULATED_CPU else 768
    weight = packed(n, 768, cases.grouped(group_size))
    assert weight.nbytes == weight.packed_weight.nbytes
    assert weight.nbytes <= most * n * 768 / 2


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

NOT_A_FLOAT = "input must be torch.float32, torch.bfloat16(,| or) torch.float16"


@pytest.mark.one_cpu
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
        (
            torch.ones(5, K),
            torch.ones(N, dtype=torch.int64),
            "bias must be torch.float32, torch.bfloat16 or torch.float16",
        ),
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
