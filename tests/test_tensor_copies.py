"""Copies, slices and conversions of the packed tensor."""

import copy
import pickle
from itertools import product

import cases
import pytest
import torch
from tensors import EACH_DTYPE, EACH_LAYOUT, EACH_SCHEME, K, N, assert_same_weight, packed
from torch.nn.functional import linear

import ao_arm
from ao_arm import ACLPackedLayout, ACLPackedTensor

pytestmark = pytest.mark.one_cpu

COPIES = {
    "detach": lambda w: w.detach(),
    "clone": lambda w: w.clone(),
    "contiguous": lambda w: w.contiguous(),
    "copy": lambda w: copy.copy(w),
    "deepcopy": lambda w: copy.deepcopy(w),
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
    "parameter": lambda w: torch.nn.Parameter(w, requires_grad=False).detach(),
}


@pytest.mark.parametrize("way", cases.thinned([*COPIES]))
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
    weight = packed(layout=layout, dtype=torch.float16)
    loaded = torch.load(cases.saved(weight), weights_only=weights_only)
    assert_same_weight(ao_arm.packed_weight_of(loaded), weight)


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
