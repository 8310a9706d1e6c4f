"""What tests of the int8 ops have in common: their options, layers, activations of any bits."""

import math

import cases
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

MOST_K = 66311  # 255 * 127 times this is just below 2^31
SYMMETRIES = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
GRANULARITIES = pytest.mark.parametrize("per_token", [True, False], ids=["per_token", "per_tensor"])
DTYPES = pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)


# Rows are taken in stretches of at least 256 and those in blocks of 64.
LARGE = [(257, 65, 385), (1, 3072, 768), *([] if cases.EMULATED_CPU else [(64, 768, 3072), (128, 1024, 4096)])]


def layer_of(n: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """A weight's int8 values, its scales, and every kind of bias."""
    scale = torch.rand(n) * 0.01 + 1e-4
    biases = {"none": None, "float32": torch.randn(n), "same dtype": torch.randn(n).to(dtype)}
    return cases.int8_values(n, k), scale, biases


def float_matrices(dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    """Matrices of any bit patterns: subnormals, huge values, zeros, now and then NaN or infinity."""
    integer, top = (torch.int32, 31) if dtype == torch.float32 else (torch.int16, 15)
    information = torch.finfo(dtype)
    extremes = [information.max, information.min, information.smallest_normal, information.eps]
    common = [0.0, -0.0, 1.0, -1.0, 127.5, *extremes]
    least = [1, 1 - (1 << top)]  # the subnormals of both signs that are nearest to 0
    special = [*cases.bits(torch.tensor(common, dtype=dtype)).tolist(), *least]
    pattern = st.one_of(st.sampled_from(special), st.integers(-(1 << top), (1 << top) - 1))

    def matrix(shape: tuple[int, int]) -> st.SearchStrategy[Tensor]:
        m, k = shape
        return st.lists(pattern, min_size=m * k, max_size=m * k).map(
            lambda patterns: torch.tensor(patterns, dtype=integer).view(dtype).reshape(m, k)
        )

    return st.tuples(st.integers(1, 3), st.integers(1, 40)).flatmap(matrix)


def odd_activations(k: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Named rows of values that are easily got wrong."""
    information = torch.finfo(dtype)
    half_steps = torch.arange(-k, k, 2) / 2  # with 127.5 among them each lies between two steps
    half_steps[0] = 127.5
    rows = {
        "zeros": torch.zeros(k),
        "negative zeros": torch.full((k,), -0.0),
        "normal": torch.randn(k),
        "positive": torch.rand(k) + 1,
        "negative": -torch.rand(k) - 1,
        "equal": torch.full((k,), 0.3),
        "smallest subnormal": torch.full((k,), information.smallest_normal * information.eps),
        "subnormal": torch.randn(k) * information.smallest_normal / 8,
        "tiny": torch.randn(k) * 1e-7,
        "largest": torch.full((k,), information.max),
        "both largest": torch.where(torch.arange(k).remainder(2) == 0, information.max, information.min),
        "one large": torch.where(torch.arange(k) == k - 1, information.max, 1.0),
        "mixed magnitudes": torch.randn(k) * torch.logspace(-30, 4, k),
        "half steps": half_steps,
        "NaN": torch.where(torch.arange(k) == k // 2, math.nan, 1.0),
        "infinity": torch.where(torch.arange(k) == 0, -math.inf, 1.0),
    }
    return {name: row.to(dtype) for name, row in rows.items()}


def first_difference(actual: Tensor, expected: Tensor) -> str:
    place = tuple((actual != expected).nonzero()[0].tolist())
    return f"{actual[place].item()} at {place} should be {expected[place].item()}"
