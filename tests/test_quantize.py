"""How weights are quantized, against the formula written out for a whole matrix."""

import math

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ao_arm import quantize
from ao_arm.quantize import quantize_weight

# Nothing here depends on the CPU.
pytestmark = pytest.mark.one_cpu

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
