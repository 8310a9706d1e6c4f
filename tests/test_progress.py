"""The bar that counts quantized layers, and the one of known steps."""

import sys
from collections.abc import Callable

import pytest
import torch
from torchao.quantization import quantize_

import ao_arm
from ao_arm import progress

pytestmark = pytest.mark.x86


class Timer:
    """Closes the bar when a test says that the moment is over."""

    latest: "Timer"

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self.function, self.daemon = function, False

    def start(self) -> None:
        Timer.latest = self

    def cancel(self) -> None: ...


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    monkeypatch.setattr(progress, "_SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(progress.threading, "Timer", Timer)
    return capsys


def quantize_three_layers() -> None:
    quantize_(torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3))), ao_arm.acl_int8_dynamic())


def test_counts_layers_and_ends_its_line(shown: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.VARIABLE, "1")
    quantize_three_layers()
    Timer.latest.function()
    assert progress._bar is None
    text = shown.readouterr().err
    assert "ao_arm: quantizing: 3 layers" in text
    assert text.endswith("\n")


def test_nothing_is_shown_in_scripts(shown: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    assert not sys.stderr.isatty()
    quantize_three_layers()
    assert "quantizing" not in shown.readouterr().err


def test_steps_are_the_only_bar(shown: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.VARIABLE, "1")
    with progress.steps(1, "a title") as report:
        report("a step")
        quantize_three_layers()
    assert progress._bar is None
    text = shown.readouterr().err
    assert "a title" in text and "quantizing" not in text
    quantize_three_layers()
    Timer.latest.function()
    assert progress._bar is None
    assert "ao_arm: quantizing: 3 layers" in shown.readouterr().err
