"""How weights are quantized, against the formula written out for a whole matrix."""

import math

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ao_arm import quantize
from ao_arm.quantize import quantize_weight, quantize_weight_in_groups

pytestmark = pytest.mark.x86

LEAST_SCALE = 2.0**-23

DTYPES = pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
GRANULARITIES = pytest.mark.parametrize("per_channel", [True, False], ids=["per_channel", "per_tensor"])


def by_formula(weight: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Int8 values and one scale for each row."""
    w = weight.float()
    largest = w.abs().amax(dim=1, keepdim=True) if per_channel else w.abs().max().expand(w.shape[0], 1)
    scale = torch.maximum(largest / 127, torch.tensor(LEAST_SCALE))
    return torch.clamp(torch.round(w * (1 / scale)), -127, 127).to(torch.int8), scale


def assert_quantized_by_formula(weight: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    qdata, scale = quantize_weight(weight, per_channel)
    expected_qdata, expected_scale = by_formula(weight, per_channel)
    assert scale.dtype == torch.float32
    assert scale.shape == (weight.shape[0] if per_channel else 1,)
    assert cases.same_bits(scale.expand(weight.shape[0]), expected_scale.squeeze(1))
    assert qdata.dtype == torch.int8
    assert torch.equal(qdata, expected_qdata)
    assert int(qdata.min()) >= -127, "-128 must not occur"
    return qdata, scale


@DTYPES
@GRANULARITIES
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (33, 65), (130, 127)], ids=str)
def test_weights_are_quantized_by_the_formula(shape: tuple[int, int], per_channel: bool, dtype: torch.dtype) -> None:
    weight = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None]
    assert_quantized_by_formula(weight.to(dtype), per_channel)


@DTYPES
@GRANULARITIES
def test_rows_of_odd_values(per_channel: bool, dtype: torch.dtype) -> None:
    information, k = torch.finfo(dtype), 64
    rows = {
        "zeros": torch.zeros(k),
        "negative zeros": torch.full((k,), -0.0),
        "tiny": torch.full((k,), 1e-9),
        "smallest subnormal": torch.full((k,), information.smallest_normal * information.eps),
        "largest": torch.full((k,), information.max),
        "both largest": torch.where(torch.arange(k).remainder(2) == 0, information.max, information.min),
        "half steps": torch.cat([torch.tensor([127.0]), torch.arange(k - 1) + 0.5]),
    }
    for name, row in rows.items():
        qdata, scale = assert_quantized_by_formula(row.to(dtype)[None], per_channel)
        if name in ("zeros", "negative zeros"):
            assert not qdata.any()
            assert scale.item() == LEAST_SCALE
        if name == "both largest":
            assert qdata.unique().tolist() == [-127, 127]
    assert_quantized_by_formula(torch.stack([row.to(dtype) for row in rows.values()]), per_channel)


@GRANULARITIES
def test_a_row_of_zeros_among_others(per_channel: bool) -> None:
    weight = torch.randn(5, 16)
    weight[2] = 0
    qdata, scale = assert_quantized_by_formula(weight, per_channel)
    assert not qdata[2].any()
    assert bool(scale.isfinite().all()) and bool((scale > 0).all())


@GRANULARITIES
@pytest.mark.parametrize("chunk", (1, 16, 17, 32, 33, 48, 1000), ids="chunk={}".format)
def test_chunks_change_nothing(chunk: int, per_channel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are converted in chunks of whole rows; 17 rows of 16 fill some of these chunks and not others."""
    weight = torch.randn(17, 16) * torch.logspace(-2, 2, 17)[:, None]
    monkeypatch.setattr(quantize, "_CHUNK", chunk)
    assert_quantized_by_formula(weight, per_channel)


@pytest.mark.parametrize("n", (1023, 1024, 1025, 2049), ids="n={}".format)
def test_large_weights_at_the_borders_of_chunks(n: int) -> None:
    assert_quantized_by_formula(torch.randn(n, 1024), per_channel=True)


def test_rows_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "_CHUNK", 100)
    assert_quantized_by_formula(torch.randn(3, 257), per_channel=True)


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf), ids=str)
@DTYPES
@GRANULARITIES
def test_values_that_are_not_finite_are_refused_with_their_place(
    per_channel: bool, dtype: torch.dtype, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_CHUNK", 32)
    for row, column in ((0, 0), (4, 15), (16, 3)):
        weight = torch.randn(17, 16).to(dtype)
        weight[row, column] = value
        with pytest.raises(ValueError, match=rf"holds {value} at \[{row}, {column}\]"):
            quantize_weight(weight, per_channel)


@pytest.mark.parametrize(
    "arrange",
    [lambda w: w.t(), lambda w: w[:, ::2], lambda w: w[::3], lambda w: w[:1].expand(7, -1)],
    ids=["transposed", "strided along k", "strided along n", "expanded"],
)
def test_weights_arranged_in_memory_in_any_way(arrange) -> None:
    weight = arrange(torch.randn(24, 18))
    assert_quantized_by_formula(weight, per_channel=True)


def test_the_weight_itself_is_left_alone() -> None:
    weight = torch.randn(9, 9)
    before = weight.clone()
    quantize_weight(weight)
    assert torch.equal(weight, before)


@GRANULARITIES
@given(
    rows=st.integers(1, 8).flatmap(
        lambda k: st.lists(
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=k, max_size=k),
            min_size=1,
            max_size=6,
        )
    )
)
def test_any_finite_weight_is_restored_to_half_a_step(per_channel: bool, rows: list[list[float]]) -> None:
    weight = torch.tensor(rows)
    qdata, scale = assert_quantized_by_formula(weight, per_channel)
    steps = (qdata.double() * scale.double()[:, None] - weight.double()) / scale.double()[:, None]
    assert float(steps.abs().max()) <= 0.5 + 1e-4


# --- 4 bits in groups ---

MAPPINGS = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
SCALE_DTYPES = pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32], ids=cases.name_of)
SEARCHES = pytest.mark.parametrize("search", [False, True], ids=["direct", "search"])


def steps(group: Tensor, scale: Tensor, scale_dtype: torch.dtype, zero_point: float = 0.0) -> tuple[Tensor, Tensor]:
    """The values of one group and its squared error, by a scale that is rounded to its dtype first."""
    rounded = (torch.tensor(LEAST_SCALE) if scale.abs() < LEAST_SCALE else scale).to(scale_dtype).float()
    q = torch.clamp(torch.round(group / rounded) + zero_point, -8, 7)
    return q, ((q - zero_point) * rounded - group).square().sum()


def group_by_formula(group: Tensor, symmetric: bool, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """Values, scale and zero point of one group, as the docstring says."""
    if not symmetric:
        low, high = min(group.min(), torch.tensor(0.0)), max(group.max(), torch.tensor(0.0))
        scale = torch.maximum((high - low) / 15, torch.tensor(LEAST_SCALE)).to(scale_dtype)
        zero_point = int((-8 - torch.round(low / scale.float())).clamp(-8, 7))
        return steps(group, scale.float(), scale_dtype, zero_point)[0], scale, zero_point
    largest = group[group.abs().argmax()]
    positive, signed = largest.abs() / 7.5, -largest / 8
    scale = signed if steps(group, signed, scale_dtype)[1] < steps(group, positive, scale_dtype)[1] else positive
    scale = torch.tensor(LEAST_SCALE) if scale.abs() < LEAST_SCALE else scale
    return steps(group, scale, scale_dtype)[0], scale.to(scale_dtype), 0


def restored(qdata: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """The quantized weight, (n, groups, group_size) in float64."""
    groups = qdata.double().view(*scale.shape, -1)
    return (groups - (0 if zero_point is None else zero_point.double()[..., None])) * scale.double()[..., None]


def importances(k: int) -> Tensor:
    """Of columns, some of which no input reaches."""
    return torch.rand(k) ** 4 * (torch.arange(k) % 7 != 3)


def squared_errors(weight: Tensor, *plain: Tensor | None, importance: Tensor | None = None) -> Tensor:
    """Of each group, weighed by the columns' importance."""
    found = restored(*plain)
    counts = torch.ones(weight.shape[1]) if importance is None else importance
    errors = (found - weight.double().view(found.shape)).square() * counts.double().view(1, *found.shape[1:])
    return errors.sum(dim=2)


@DTYPES
@MAPPINGS
@SCALE_DTYPES
@pytest.mark.parametrize(
    ("shape", "group_size"), [((1, 32), 32), ((3, 96), 32), ((5, 128), 64), ((2, 37), 37), ((4, 1), 1)], ids=str
)
def test_groups_are_quantized_by_the_formula(
    shape: tuple[int, int], group_size: int, symmetric: bool, scale_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    weight = (torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None]).to(dtype)
    weight[-1, :group_size] = weight[-1, :group_size].abs()  # a group of one sign
    qdata, scale, zero_point = quantize_weight_in_groups(weight, group_size, symmetric, scale_dtype)
    groups = shape[0], shape[1] // group_size
    assert qdata.dtype == torch.int8 and qdata.shape == weight.shape
    assert scale.dtype == scale_dtype and scale.shape == groups
    assert (zero_point is None) == symmetric
    for row in range(groups[0]):
        for group in range(groups[1]):
            part = slice(group * group_size, (group + 1) * group_size)
            values, expected_scale, expected_zero = group_by_formula(weight[row, part].float(), symmetric, scale_dtype)
            assert torch.equal(qdata[row, part].float(), values)
            assert scale[row, group] == expected_scale
            if zero_point is not None:
                assert zero_point.dtype == torch.int8 and zero_point.shape == groups
                assert zero_point[row, group] == expected_zero


def test_scales_are_rounded_to_bfloat16_as_torch_rounds() -> None:
    """By integers, so that no compiler leaves it out."""
    patterns = torch.randint(-(2**31), 2**31, (100_000,)).to(torch.int32)
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    scale = torch.cat([patterns, *(halves | low for low in (0, 0x7FFF, 0x8000, 0x8001))]).view(torch.float32)
    scale = scale[~scale.isnan() & (scale.abs() >= 2.0**-23)]
    assert torch.equal(quantize._rounded(scale, torch.bfloat16), scale.bfloat16().float())
    assert torch.equal(quantize._rounded(scale, torch.float32), scale)


def test_the_largest_magnitude_takes_the_value_without_counterpart() -> None:
    weight = torch.tensor([[8.0, *range(-7, 8), *[0.0] * 16], [-8.0, *range(-7, 8), *[0.0] * 16]])
    qdata, scale, _ = quantize_weight_in_groups(weight, 32, True, torch.float32)
    assert scale.tolist() == [[-1.0], [1.0]]
    assert qdata[:, 0].tolist() == [-8, -8]
    assert torch.equal(restored(qdata, scale, None).view(weight.shape), weight.double())


@SCALE_DTYPES
def test_symmetric_groups_are_never_worse_than_by_one_scale_for_all(scale_dtype: torch.dtype) -> None:
    weight = torch.randn(64, 256) ** 3
    errors = squared_errors(weight, *quantize_weight_in_groups(weight, 32, True, scale_dtype))
    groups = weight.view(64, 8, 32)
    scale = (groups.abs().amax(dim=2) / 7.5).to(scale_dtype)
    plain = torch.clamp(torch.round(groups / scale.float()[..., None]), -8, 7)
    by_one = squared_errors(weight, plain.view(64, 256), scale, None)
    assert bool((errors <= by_one * (1 + 1e-5)).all())
    assert float(errors.sum()) < 0.9 * float(by_one.sum())


@MAPPINGS
@SCALE_DTYPES
@pytest.mark.parametrize("group_size", (32, 64, 512), ids="group_size={}".format)
def test_a_search_is_never_worse(group_size: int, symmetric: bool, scale_dtype: torch.dtype) -> None:
    weight = torch.cat([torch.randn(32, 512), torch.randn(32, 512) ** 3, torch.rand(32, 512), torch.zeros(1, 512)])
    importance = importances(512)
    direct, searched = (
        squared_errors(
            weight, *quantize_weight_in_groups(weight, group_size, symmetric, scale_dtype, given), importance=importance
        )
        for given in (None, importance)
    )
    # The errors are compared in float32 when quantizing, and here in float64; columns of no importance count a little.
    allowance = 1e-5 * direct + 1e-5 * float(importance.mean())
    assert bool((searched <= direct + allowance).all())
    assert float(searched.sum()) < 0.9 * float(direct.sum())


def test_importance_matters_by_its_ratios_alone() -> None:
    weight, importance = torch.randn(8, 64), importances(64)
    plain, scaled, equal, none = (
        quantize_weight_in_groups(weight, 32, True, torch.bfloat16, given)
        for given in (importance, importance * 1e-20, torch.ones(64), torch.zeros(64))
    )
    assert torch.equal(plain[0], scaled[0]) and torch.equal(plain[1], scaled[1])
    assert torch.equal(equal[0], none[0]) and torch.equal(equal[1], none[1])
    assert not torch.equal(plain[0], equal[0])


@MAPPINGS
@SCALE_DTYPES
@SEARCHES
def test_groups_of_odd_values(symmetric: bool, scale_dtype: torch.dtype, search: bool) -> None:
    information = torch.finfo(torch.float32)
    rows = torch.stack(
        [
            torch.zeros(32),
            torch.full((32,), -0.0),
            torch.full((32,), 1e-9),
            torch.full((32,), -information.smallest_normal),
            torch.full((32,), information.max),
            torch.where(torch.arange(32) % 2 == 0, information.max, information.min),
        ]
    )
    importance = torch.ones(32) if search else None
    qdata, scale, zero_point = quantize_weight_in_groups(rows, 32, symmetric, scale_dtype, importance)
    found = restored(qdata, scale, zero_point).view(rows.shape)
    assert bool(found.isfinite().all())
    assert not found[:2].any()
    assert bool((scale.float().abs() >= LEAST_SCALE).all())
    error = (found - rows.double()).abs() / scale.double().abs()
    # Half a step; bfloat16 scales are off by 2 ** -9, which 15 steps multiply.
    assert float(error.max()) <= 0.5 + 16 / 512


@pytest.mark.parametrize("chunk", (1, 64, 65, 128, 1000), ids="chunk={}".format)
@MAPPINGS
@SEARCHES
def test_chunks_change_no_groups(chunk: int, symmetric: bool, search: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 64)
    importance = importances(64) if search else None
    whole = quantize_weight_in_groups(weight, 32, symmetric, torch.bfloat16, importance)
    monkeypatch.setattr(quantize, "_CHUNK", chunk)
    parts = quantize_weight_in_groups(weight, 32, symmetric, torch.bfloat16, importance)
    for part, expected in zip(parts, whole, strict=True):
        assert (part is None and expected is None) or torch.equal(part, expected)


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf), ids=str)
@DTYPES
@MAPPINGS
def test_groups_that_are_not_finite_are_refused_with_their_place(
    symmetric: bool, dtype: torch.dtype, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_CHUNK", 64)
    for row, column in ((0, 0), (2, 31), (4, 40)):
        weight = torch.randn(5, 64).to(dtype)
        weight[row, column] = value
        with pytest.raises(ValueError, match=rf"holds {value} at \[{row}, {column}\]"):
            quantize_weight_in_groups(weight, 32, symmetric, torch.bfloat16)


@MAPPINGS
def test_groups_of_a_weight_arranged_in_any_way(symmetric: bool) -> None:
    weight = torch.randn(64, 6).t()
    before = weight.clone()
    found = quantize_weight_in_groups(weight, 32, symmetric, torch.float32)
    expected = quantize_weight_in_groups(weight.contiguous(), 32, symmetric, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None)
    assert torch.equal(weight, before)
