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
from ao_arm.quantize import quantize_weight

N, K = 40, 66

LAYOUTS = {
    f"{mapping}, {activation} x {weight}": ACLPackedLayout(mapping, activation, weight)
    for mapping, activation, weight in product(
        ("symmetric", "asymmetric"), ("per_token", "per_tensor"), ("per_channel", "per_tensor")
    )
}
EACH_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
EACH_DTYPE = pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)


def packed(
    n: int = N, k: int = K, layout: ACLPackedLayout | None = None, dtype: torch.dtype = torch.float32
) -> ACLPackedTensor:
    return ACLPackedTensor.from_hp(torch.randn(n, k, dtype=dtype), layout)


def by_reference(x: Tensor, weight: ACLPackedTensor, bias: Tensor | None = None) -> Tensor:
    qdata, scale, _ = weight.get_plain()
    layout = weight.get_layout()
    return reference.linear_int8_dynamic(
        x,
        qdata,
        scale.expand(qdata.shape[0]),
        bias,
        layout.activation_mapping == "symmetric",
        layout.activation_granularity == "per_token",
    )


# --- linear ---


@EACH_LAYOUT
@EACH_DTYPE
def test_linear_equals_the_reference(layout: ACLPackedLayout, dtype: torch.dtype, kernel: str) -> None:
    weight = packed(layout=layout, dtype=dtype)
    assert weight.kernel == kernel
    for shape, bias in product([(K,), (5, K), (2, 3, K)], [None, torch.randn(N), torch.randn(N, dtype=dtype)]):
        x = torch.randn(shape, dtype=dtype)
        actual = linear(x, weight, bias)
        assert actual.shape == (*shape[:-1], N)
        assert cases.same_bits(actual, by_reference(x, weight, bias)), f"input {shape}"


def test_linear_is_near_the_float_layer() -> None:
    """Int8 keeps some forty decibels; far fewer would mean that something is swapped or scaled twice."""
    weight, x = torch.randn(256, 512), torch.randn(64, 512)
    exact = linear(x.double(), weight.double())
    for layout in LAYOUTS.values():
        error = linear(x, ACLPackedTensor.from_hp(weight, layout)).double() - exact
        sqnr = 10 * torch.log10(exact.square().mean() / error.square().mean())
        assert sqnr > 33, f"{layout}: {sqnr:.1f} dB"


def test_linear_takes_keywords() -> None:
    weight, x, bias = packed(), torch.randn(5, K), torch.randn(N)
    expected = linear(x, weight, bias)
    for name, actual in {
        "weight=": linear(x, weight=weight, bias=bias),
        "all": linear(input=x, weight=weight, bias=bias),
        "bias=": linear(x, weight, bias=bias),
    }.items():
        assert cases.same_bits(actual, expected), name
    assert cases.same_bits(linear(x, weight=weight), linear(x, weight, None))


def test_inputs_of_another_dtype_than_the_weight_keep_theirs() -> None:
    weight = packed(dtype=torch.float32)
    for dtype in cases.FLOATS:
        x = torch.randn(3, K, dtype=dtype)
        assert cases.same_bits(linear(x, weight), by_reference(x, weight)), dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
def test_autocast_gives_its_dtype(dtype: torch.dtype) -> None:
    weight, x, bias = packed(), torch.randn(5, K), torch.randn(N)
    with torch.autocast("cpu", dtype):
        outputs = {
            "linear": linear(x, weight, bias),
            "linear of its dtype": linear(x.to(dtype), weight, bias),
            "x @ w.t()": x @ weight.t(),
        }
    for name, output in outputs.items():
        assert output.dtype == dtype, name
    assert cases.same_bits(outputs["linear"], by_reference(x.to(dtype), weight, bias))
    assert linear(x, weight).dtype == torch.float32


def test_inputs_that_want_gradients_are_served() -> None:
    weight, x = packed(), torch.randn(5, K)
    assert cases.same_bits(linear(x.clone().requires_grad_(), weight).detach(), linear(x, weight))
    with torch.inference_mode():
        assert cases.same_bits(linear(x, weight).clone(), by_reference(x, weight))


# --- products with the transpose ---


def test_products_with_the_transpose() -> None:
    weight, x = packed(), torch.randn(5, K)
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
        assert cases.same_bits(actual, linear(x, weight, bias)), name


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


@EACH_LAYOUT
@EACH_DTYPE
def test_the_packed_values_are_those_that_were_quantized(
    layout: ACLPackedLayout, dtype: torch.dtype, kernel: str
) -> None:
    original = torch.randn(N, K, dtype=dtype)
    qdata, scale = quantize_weight(original, layout.weight_granularity == "per_channel")
    weight = ACLPackedTensor.from_hp(original, layout)
    unpacked, plain_scale, zero_point = weight.get_plain()
    assert zero_point is None
    assert torch.equal(unpacked, qdata)
    assert torch.equal(plain_scale, scale)
    assert cases.same_bits(weight.dequantize(), (qdata.float() * scale[:, None]).to(dtype))
    assert cases.same_bits(weight.dequantize(torch.float32), qdata.float() * scale[:, None])
    assert weight.get_layout() == layout


def test_it_shows_shape_and_dtype_of_the_weight() -> None:
    for dtype in cases.FLOATS:
        weight = packed(dtype=dtype)
        assert (weight.shape, weight.dtype, weight.device.type) == ((N, K), dtype, "cpu")
        assert not weight.requires_grad


@EACH_LAYOUT
def test_repr_names_shape_scheme_and_kernel(layout: ACLPackedLayout, kernel: str) -> None:
    text = repr(packed(layout=layout))
    for part in (f"({N}, {K})", *dataclasses.astuple(layout), kernel, "float32"):
        assert part in text, f"no {part} in {text}"


@pytest.mark.parametrize(("n", "k"), [(768, 768)] if cases.EMULATED_CPU else [(768, 768), (3072, 768), (769, 1024)])
def test_packing_adds_no_more_than_a_twentieth(n: int, k: int, kernel: str) -> None:
    weight = packed(n, k)
    assert weight.packed_weight.nbytes <= 1.05 * n * k
    assert weight.nbytes <= 1.05 * n * k
    assert weight.nbytes == weight.packed_weight.nbytes + weight.scale.nbytes


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


INT8 = torch.int8
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
}


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


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ACLPackedLayout)])
def test_layouts_accept_known_words_only(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be one of .*not 'per_group'"):
        ACLPackedLayout(**{field: "per_group"})


def test_layouts_compare_and_hash_by_value() -> None:
    assert ACLPackedLayout() == ACLPackedLayout("symmetric", "per_token", "per_channel")
    assert len({*LAYOUTS.values(), ACLPackedLayout()}) == len(LAYOUTS)


# --- conversions and copies ---


def assert_same_weight(actual: ACLPackedTensor, expected: ACLPackedTensor) -> None:
    assert type(actual) is ACLPackedTensor
    assert (actual.shape, actual.dtype, actual.get_layout()) == (expected.shape, expected.dtype, expected.get_layout())
    assert torch.equal(actual.get_plain()[0], expected.get_plain()[0])
    assert torch.equal(actual.get_plain()[1], expected.get_plain()[1])


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
def test_copies_have_memory_of_their_own(way: str) -> None:
    weight = packed()
    copied = COPIES[way](weight)
    assert copied.packed_weight.data_ptr() != weight.packed_weight.data_ptr()
    assert copied.scale.data_ptr() != weight.scale.data_ptr()


@pytest.mark.parametrize("weights_only", [True, False], ids="weights_only={}".format)
@EACH_LAYOUT
def test_torch_save_and_load(layout: ACLPackedLayout, weights_only: bool) -> None:
    weight, file = packed(layout=layout, dtype=torch.float16), io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=weights_only)
    assert_same_weight(loaded.tensor_impl if hasattr(loaded, "tensor_impl") else loaded, weight)


def test_pickles_do_not_depend_on_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that one kernel packed is packed again, by the kernel that is chosen where it is loaded."""
    original, x = torch.randn(N, K), torch.randn(5, K)
    for first, second in product(cases.KERNELS, repeat=2):
        monkeypatch.setenv("AO_ARM_KERNEL", first)
        weight = ACLPackedTensor.from_hp(original)
        saved = pickle.dumps(weight)
        monkeypatch.setenv("AO_ARM_KERNEL", second)
        loaded = pickle.loads(saved)
        assert loaded.kernel == second
        assert cases.same_bits(linear(x, loaded), linear(x, weight)), f"{first} to {second}"


@EACH_DTYPE
def test_to_another_dtype(dtype: torch.dtype) -> None:
    weight, x = packed(), torch.randn(5, K, dtype=dtype)
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


def test_on_the_meta_device_there_is_only_its_shape() -> None:
    """As a model is before a checkpoint is loaded into it."""
    weight = packed().to("meta")
    assert (weight.shape, weight.device.type) == ((N, K), "meta")
    assert "meta" in repr(weight)
    assert linear(torch.randn(5, K, device="meta"), weight).shape == (5, N)
    with pytest.raises(ValueError, match="input is on cpu but packed_weight is on meta"):
        linear(torch.randn(5, K), weight)
    for read in (weight.get_plain, weight.dequantize, lambda: weight.kernel, lambda: pickle.dumps(weight)):
        with pytest.raises(NotImplementedError, match="meta"):
            read()


# --- wrong arguments ---


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.ones(5, K, dtype=torch.int32), None, "float32, bfloat16 or float16"),
        (torch.ones(5, K, dtype=torch.int8), None, "float32, bfloat16 or float16"),
        (torch.ones(5, K, dtype=torch.float64), None, "float32, bfloat16 or float16"),
        (torch.ones(5, K, dtype=torch.complex64), None, "float32, bfloat16 or float16"),
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
def test_linear_refuses_wrong_arguments_with_a_value_error(x: Tensor, bias: Tensor | None, message: str) -> None:
    weight = packed()
    with pytest.raises(ValueError, match=message):
        linear(x, weight, bias)
    with pytest.raises(ValueError, match=message):
        linear(x, weight=weight, bias=bias)
