"""Observers: the ranges that they choose."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import cases
import pytest
import torch
from observed import ACTIVATIONS, EACH_ACTIVATION, EACH_OBSERVER, observed
from torch import Tensor
from torchao.quantization import MappingType, PerTensor
from torchao.quantization.observer import AffineQuantizedMinMaxObserver

from ao_arm import reference
from ao_arm.observers import HistogramObserver, make_observer

pytestmark = pytest.mark.x86


def with_outliers(count: int = 20000, every: int = 2000, size: float = 40.0) -> Tensor:
    data = torch.randn(count)
    data[::every] *= size
    return data


DATA: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: torch.randn(20000),
    "outliers": with_outliers,
    "outliers on one side": lambda: with_outliers().abs() - 0.3,
    "after a ReLU": lambda: with_outliers().relu(),
    "negative": lambda: -with_outliers().abs() - 1,
    "mostly zeros": lambda: with_outliers() * (torch.rand(20000) > 0.9),
    "uniform": lambda: torch.rand(20000) * 3 - 1,
    "small": lambda: with_outliers() * 1e-6,
    "large": lambda: with_outliers() * 1e30,
}
EACH_DATA = pytest.mark.parametrize("data", DATA)


def by_range(low: float, high: float, mapping: MappingType, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The scale and the zero point of a range: computed plainly, in float32."""
    low, high = min(low, 0.0), max(high, 0.0)
    if mapping == MappingType.SYMMETRIC:
        scale = torch.tensor([max(-low, high)]) / 127.5
        return scale.clamp(min=2.0**-23), torch.zeros(1, dtype=dtype)
    scale = ((torch.tensor([high]) - torch.tensor([low])) / 255).clamp(min=2.0**-23)
    limits = torch.iinfo(dtype)
    zero_point = limits.min - torch.round(torch.tensor([low]) / scale)
    return scale, zero_point.clamp(limits.min, limits.max).to(dtype)


def noise(data: Tensor, scale: Tensor, zero_point: Tensor) -> float:
    """The mean squared error of quantizing the data so."""
    q = reference.quantize_static(data, scale, zero_point)
    return float(((q.double() - zero_point.double()) * scale.double() - data.double()).square().mean())


# --- ranges ---


@EACH_ACTIVATION
@EACH_DATA
def test_minmax_is_the_whole_range(data: str, mapping: MappingType, dtype: torch.dtype) -> None:
    values = DATA[data]()
    scale, zero_point = observed("minmax", values.split(3001), mapping, dtype)
    assert (scale.dtype, zero_point.dtype) == (torch.float32, dtype)
    plain_scale, plain_zero_point = by_range(float(values.min()), float(values.max()), mapping, dtype)
    torch.testing.assert_close(scale, plain_scale, rtol=1e-6, atol=0)
    assert torch.equal(zero_point, plain_zero_point)
    torchaos = AffineQuantizedMinMaxObserver(mapping, dtype, PerTensor(), eps=2.0**-23, scale_dtype=torch.float32)
    torchaos(values)
    theirs = torchaos.calculate_qparams()
    assert torch.equal(scale, theirs[0].reshape(1))
    assert torch.equal(zero_point, theirs[1].reshape(1).to(dtype))


@EACH_ACTIVATION
def test_the_moving_average_moves_a_hundredth_of_the_way(mapping: MappingType, dtype: torch.dtype) -> None:
    batches = [torch.randn(300) * (1 + i % 7) - 1 for i in range(50)]
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches[1:]:
        low = 0.99 * low + 0.01 * float(batch.min())
        high = 0.99 * high + 0.01 * float(batch.max())
    scale, zero_point = observed("moving_average", batches, mapping, dtype)
    expected_scale, expected_zero_point = by_range(low, high, mapping, dtype)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-4, atol=0)
    assert (zero_point.int() - expected_zero_point.int()).abs() <= 1


def test_a_single_outlier_moves_the_average_little() -> None:
    batches = [torch.randn(300) for _ in range(50)]
    before = observed("moving_average", batches, *ACTIVATIONS["s8 symmetric"])[0]
    batches[20][3] = 100.0
    after = observed("moving_average", batches, *ACTIVATIONS["s8 symmetric"])[0]
    assert before < after < before + 1.01 * 100 / 127.5 / 100


@EACH_ACTIVATION
@EACH_DATA
def test_the_histogram_has_less_noise_than_the_whole_range(data: str, mapping: MappingType, dtype: torch.dtype) -> None:
    values = DATA[data]()
    minmax, histogram = (
        noise(values, *observed(name, values.split(3001), mapping, dtype)) for name in ("minmax", "histogram")
    )
    # Where the whole range is the best, bins are what can be told apart.
    assert histogram <= minmax * (1.0 if "outlier" in data or "ReLU" in data else 1.02)


def test_the_histogram_cuts_off_a_single_outlier() -> None:
    values = torch.randn(500_000)
    values[77] = 100.0
    minmax, histogram = (
        noise(values, *observed(name, [values], *ACTIVATIONS["s8 symmetric"])) for name in ("minmax", "histogram")
    )
    assert histogram < 0.4 * minmax


@pytest.mark.slow
@EACH_ACTIVATION
@pytest.mark.parametrize("data", ["normal", "outliers", "outliers on one side", "after a ReLU", "mostly zeros"])
def test_the_histogram_finds_nearly_the_least_noise(data: str, mapping: MappingType, dtype: torch.dtype) -> None:
    values = DATA[data]()
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    fractions = [i / 40 for i in range(2, 41, 1 + cases.STEP // 2)]
    pairs = (
        [(a, a) for a in fractions]
        if mapping == MappingType.SYMMETRIC
        else [(a, b) for a in fractions for b in fractions]
    )
    least = min(noise(values, *by_range(a * low, b * high, mapping, dtype)) for a, b in pairs)
    assert noise(values, *observed("histogram", [values], mapping, dtype)) <= 1.1 * least


# --- the histogram's bins ---


def histogram(batches: Any) -> HistogramObserver:
    made = make_observer("histogram", MappingType.SYMMETRIC, torch.int8)
    for batch in batches:
        made(batch)
    return made


def test_wider_bins_keep_the_counts() -> None:
    batches = [torch.randn(1000) * 1.3**i for i in range(40)]
    everything = torch.cat(batches)
    for order in (batches, batches[::-1], [everything], everything.split(77)):
        seen = histogram(order)
        assert float(seen.counts.sum()) == everything.numel()
        end = seen.width * seen.bins / 2
        assert float(everything.abs().max()) <= end
        direct = torch.histc(everything.double(), seen.bins, -end, end)
        assert torch.equal(seen.counts, direct), "wider bins count otherwise than they had from the beginning"
        assert seen.counts.shape == (seen.bins,)


@EACH_ACTIVATION
def test_batches_give_what_all_at_once_gives(mapping: MappingType, dtype: torch.dtype) -> None:
    everything = with_outliers()
    at_once = observed("histogram", [everything], mapping, dtype)
    for size in (50, 3000):
        assert all(map(torch.equal, observed("histogram", everything.split(size), mapping, dtype), at_once))


@EACH_OBSERVER
def test_empty_and_constant_batches_on_the_way(observer: str) -> None:
    """What holds no range yet is no reason to fail; zeros count once there is one."""
    values = torch.randn(1000)
    batches = [torch.zeros(0, 3), torch.zeros(5), values, torch.zeros(0), torch.full((3,), 0.5)]
    scale, zero_point = observed(observer, batches, MappingType.ASYMMETRIC, torch.uint8)
    assert 0 < scale <= (values.max() - values.min()) / 255 * 1.0001
    assert zero_point.dtype == torch.uint8


@EACH_OBSERVER
def test_any_shape_and_arrangement_is_observed(observer: str) -> None:
    values = torch.randn(6, 4, 10)
    expected = observed(observer, [values], MappingType.ASYMMETRIC, torch.int8)
    for same in (values.flatten(), values.permute(2, 0, 1), values.reshape(1, 1, 24, 10)[..., torch.arange(9, -1, -1)]):
        assert all(map(torch.equal, observed(observer, [same], MappingType.ASYMMETRIC, torch.int8), expected))


#: As a language model's layers see: nothing, one token, a prompt, several of them.
ROWS = {
    "none": (0, 16),
    "none of several": (3, 0, 16),
    "a vector": (16,),
    "one row": (1, 16),
    "one token": (1, 1, 16),
    "many rows": (256, 16),
    "prompts": (2, 5, 16),
}


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
@pytest.mark.parametrize("observer", ["minmax", "histogram"])
def test_any_number_of_rows_in_any_order(observer: str, dtype: torch.dtype) -> None:
    batches = [(torch.randn(shape) * (1 + i) - 0.3).to(dtype) for i, shape in enumerate(ROWS.values())]
    everything = torch.cat([batch.flatten() for batch in batches])
    expected = observed(observer, [everything.float()], *ACTIVATIONS["s8 symmetric"])
    for order in (*permutations(batches, 2), batches, batches[::-1], batches[3:] + batches[:3]):
        rest = [batch for batch in batches if not any(batch is one for one in order)]
        scale, _ = observed(observer, [*order, *rest], *ACTIVATIONS["s8 symmetric"])
        assert torch.equal(scale, expected[0])


def test_the_moving_average_takes_any_number_of_rows() -> None:
    batches = [torch.randn(shape) for shape in ROWS.values()]
    flat = [batch.flatten() for batch in batches if batch.numel() > 0]
    expected = observed("moving_average", flat, MappingType.ASYMMETRIC, torch.int8)
    assert all(map(torch.equal, observed("moving_average", batches, MappingType.ASYMMETRIC, torch.int8), expected))


WRONG_BATCHES = {
    "no data": ([], "saw no data: run the model on calibration inputs between prepare and convert"),
    "no elements": ([torch.zeros(0, 4)], "saw no data"),
    "zeros": ([torch.zeros(5)], "saw nothing but 0.0: calibrate with inputs that reach this layer, or leave it out"),
    "a constant": ([torch.full((5,), 3.5), torch.full((2,), 3.5)], "saw nothing but 3.5"),
    "NaN": ([torch.randn(5), torch.tensor([1.0, torch.nan]), torch.randn(5)], "saw values from nan to nan"),
    "infinity": ([torch.randn(5), torch.tensor([1.0, torch.inf]), torch.randn(5)], "calibrate with inputs that keep"),
    "a range beyond float32": ([torch.randn(5), torch.tensor([-3e38, 3e38])] * 600, "finite and below 2\\^126"),
}


@EACH_OBSERVER
@EACH_ACTIVATION
@pytest.mark.parametrize("wrong", WRONG_BATCHES)
def test_what_gives_no_scale_is_refused(wrong: str, observer: str, mapping: MappingType, dtype: torch.dtype) -> None:
    batches, message = WRONG_BATCHES[wrong]
    with pytest.raises(ValueError, match=message):
        observed(observer, batches, mapping, dtype)
