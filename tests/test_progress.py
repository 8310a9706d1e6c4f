import sys
import time

import pytest
import torch
from torchao.quantization import quantize_

import ao_arm
from ao_arm import progress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    monkeypatch.setattr(progress, "_SHOW_AFTER_SECONDS", 0.0)
    # Long enough for a slow machine not to close the bar between two layers.
    monkeypatch.setattr(progress, "_CLOSE_AFTER_SECONDS", 1.0)
    return capsys


def quantize_three_layers() -> None:
    quantize_(torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3))), ao_arm.acl_int8_dynamic())


def wait_until_it_is_closed() -> None:
    for _ in range(200):
        if progress._bar is None:
            break
        time.sleep(0.05)
    assert progress._bar is None


def test_counts_layers_and_ends_its_line(shown: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.VARIABLE, "1")
    quantize_three_layers()
    wait_until_it_is_closed()
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
    wait_until_it_is_closed()
    assert "ao_arm: quantizing: 3 layers" in shown.readouterr().err
