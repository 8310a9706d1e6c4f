"""Packed tensors made of integers and scales, or of floats: what is kept, and what is refused."""

import cases
import pytest
import torch
from tensors import EACH_DTYPE, K, N, assert_same_weight, dequantized
from torch import Tensor
from torch.nn.functional import linear

from ao_arm import ACLPackedLayout, ACLPackedTensor, reference

pytestmark = pytest.mark.one_cpu

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
    "float data": (ValueError, r"torch.int8 matrix \(n, k\), not torch.float32", dict(data=torch.zeros(4, 6))),
    "uint8 data": (ValueError, "not torch.uint8", dict(data=torch.zeros(4, 6, dtype=torch.uint8))),
    "1-D data": (ValueError, r"of shape \(4,\)", dict(data=torch.zeros(4, dtype=INT8))),
    "3-D data": (ValueError, r"of shape \(1, 4, 6\)", dict(data=torch.zeros(1, 4, 6, dtype=INT8))),
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
    "integer dtype": (ValueError, "dtype must be torch.float32", dict(dtype=INT8)),
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
        r"torch.int8 in \[-8, 7\] or torch.uint8 in \[0, 15\], not torch.float32",
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
        (
            torch.ones(4, 4, dtype=torch.int32),
            ValueError,
            "torch.float32, torch.bfloat16 or torch.float16, not torch.int32",
        ),
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
