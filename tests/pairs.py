"""Of all combinations of a test's parameters, some in which each pair of values comes together.

`pytest --pairs` runs no others: under emulation, where tests take long, and with other versions of torchao. A mistake
that takes three values at once is found on x86, which runs every combination.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest

Pair = frozenset[tuple[str, Hashable]]


def _pairs(values: Mapping[str, Hashable]) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(values.items(), 2)}


def chosen(cases: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """The numbers of the cases to take: each time the first of those that show most new pairs."""
    if not cases or len(cases[0]) < 3:
        return [*range(len(cases))]
    left = {number: _pairs(values) for number, values in enumerate(cases)}
    taken = []
    while left:
        best = max(left, key=lambda number: len(left[number]))
        new = left.pop(best)
        taken.append(best)
        left = {number: rest for number, pairs in left.items() if (rest := pairs - new)}
    return sorted(taken)


def _values(item: pytest.Item) -> dict[str, Hashable]:
    """Parameters by name; those that are no plain values by what makes them the same object."""
    callspec = getattr(item, "callspec", None)
    given: dict[str, Any] = {} if callspec is None else callspec.params
    return {name: value if isinstance(value, (str, int, float)) else id(value) for name, value in given.items()}


def left_out(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The tests that others stand for."""
    tests: dict[tuple[object, str], list[pytest.Item]] = {}
    for item in items:
        tests.setdefault((item.parent, getattr(item, "originalname", item.name)), []).append(item)
    spared = []
    for of_test in tests.values():
        kept = {*chosen([_values(item) for item in of_test])}
        spared += [item for number, item in enumerate(of_test) if number not in kept]
    return spared
