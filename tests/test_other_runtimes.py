"""Layers in other runtimes, as the benchmark compares with them."""

import os

import pytest
import torch
from benchmarked import measured, row_of

from ao_arm.benchmark import candidates
from ao_arm.benchmark.candidates import CANDIDATES, OTHER_RUNTIMES
from ao_arm.benchmark.runtime_layer import RuntimeLayer, silenced

pytestmark = pytest.mark.x86

LAYERS = {runtime: layer for runtime, layer, *_ in OTHER_RUNTIMES}
ROWS = tuple(row for row in CANDIDATES if row.name.split()[0] in LAYERS)
EACH_RUNTIME = pytest.mark.parametrize("runtime", LAYERS)


def needed(runtime: str) -> type[RuntimeLayer]:
    if obstacle := row_of(f"{runtime} int8 dynamic").obstacle():
        pytest.skip(obstacle)
    return LAYERS[runtime]


def sqnr(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float(20 * torch.log10(expected.norm() / (expected - actual).norm()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_each_row_of_the_table_is_verified(name: str) -> None:
    needed(name.split()[0])
    found = measured(row_of(name), shape="5x128x256")[name]
    assert not found.complaint
    assert found.sqnr_db is not None and found.sqnr_db > row_of(name).least_sqnr_db
    assert found.weight_bytes is None  # it is where nothing counts it


@pytest.mark.slow
@EACH_RUNTIME
@pytest.mark.parametrize("bias", [False, True])
def test_any_number_of_rows_in_any_shape(runtime: str, bias: bool) -> None:
    linear = torch.nn.Linear(96, 40, bias=bias).requires_grad_(False)
    layer = needed(runtime).of(linear)
    for shape in ((96,), (1, 96), (2, 3, 96), (1, 96), (37, 96)):
        x = torch.randn(shape)
        assert sqnr(linear(x), layer(x)) > 28, shape
    turned = torch.randn(96, 5).t()
    assert sqnr(linear(turned), layer(turned)) > 28


@EACH_RUNTIME
def test_what_is_missing_is_said_with_its_extra(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "find_spec", lambda package: None)
    rows = [row for row in ROWS if row.name.startswith(runtime)]
    for row in measured(*rows).values():
        assert row.complaint == f"it needs `pip install 'ao_arm[{runtime}]'`"
        assert not row.wrong


def test_native_output_is_silenced_and_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    def both(text: str) -> None:
        os.write(1, text.encode())
        os.write(2, text.encode())

    both("before ")
    with pytest.raises(KeyError), silenced():
        both("within ")
        raise KeyError
    both("after")
    assert capfd.readouterr() == ("before after", "before after")


def test_a_group_size_that_a_runtime_does_not_have() -> None:
    layer = needed("litert")
    with pytest.raises(NotImplementedError, match="LiteRT has 4-bit groups of 32 and of 64, not of 128"):
        layer.of(torch.nn.Linear(128, 40), 128)
