"""Which combinations of parameters run under emulation."""

from itertools import combinations, product

import pairs
import pytest

pytestmark = pytest.mark.x86


@pytest.mark.parametrize("sizes", [(3, 2, 2, 6), (4, 6, 2), (2, 2, 2), (3, 3, 3, 2, 2), (22, 6, 3)], ids=str)
def test_each_pair_of_values_comes_together(sizes: tuple[int, ...]) -> None:
    everything = [dict(zip("abcde", values, strict=False)) for values in product(*map(range, sizes))]
    some = [everything[number] for number in pairs.chosen(everything)]
    for first, second in combinations("abcde"[: len(sizes)], 2):
        assert {(case[first], case[second]) for case in some} == {(case[first], case[second]) for case in everything}
    two_largest = sorted(sizes)[-2:]
    assert len(some) <= 1.5 * two_largest[0] * two_largest[1] + 4


def test_values_that_go_together_stay_together() -> None:
    """As a layout has kernels of its own."""
    cases = [{"layout": x, "kernel": (x, y), "dtype": z} for x, y, z in product(range(5), range(3), range(2))]
    some = [cases[number] for number in pairs.chosen(cases)]
    assert {(case["kernel"], case["dtype"]) for case in some} == {(case["kernel"], case["dtype"]) for case in cases}


def test_one_or_two_parameters_are_left_as_they_are() -> None:
    assert pairs.chosen([{"a": 1, "b": 1}, {"a": 1, "b": 1}]) == [0, 1]
    assert pairs.chosen([{}]) == [0]
    assert pairs.chosen([]) == []
