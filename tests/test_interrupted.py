"""Ctrl-C and full disks in the middle of work: layers are as they were or wholly quantized, files whole or absent."""

import copy
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import cases
import pytest
import torch
from benchmarked import bench

import ao_arm
from ao_arm import command_line
from ao_arm.__main__ import main
from ao_arm.benchmark import command
from ao_arm.demo import figures

pytestmark = pytest.mark.x86

PACKAGE = str(Path(ao_arm.__file__).parent)


class Interrupter:
    """Raises KeyboardInterrupt at one of the lines of ao_arm that are executed, counted from the first."""

    def __init__(self, line: int) -> None:
        self.line, self.lines = line, 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.line:
                raise KeyboardInterrupt
        return self

    def during(self, work: Callable[[], object]) -> bool:
        """Whether the work was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def model_of_layers() -> torch.nn.Module:
    torch.manual_seed(0)
    tied = torch.nn.Linear(32, 32)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), tied, torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)).eval()
    model[3].weight = tied.weight
    return model


X = torch.linspace(-2, 2, 96).view(3, 32)


def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
    """Of each layer, past its observer."""
    return [torch.nn.functional.linear(X, layer.weight, layer.bias) for layer in model]


def static_config(model: torch.nn.Module) -> Any:
    """With an observer in front of each layer, which is not to be lost."""
    ao_arm.quantize_(model, ao_arm.acl_int8_static(step="prepare"))
    model(X)
    return ao_arm.acl_int8_static(step="convert")


CONFIGS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "dynamic": lambda model: ao_arm.acl_int8_dynamic(),
    "static": static_config,
    "grouped": lambda model: ao_arm.acl_int4_grouped(32),
}


@pytest.mark.parametrize("scheme", CONFIGS)
def test_a_layer_is_as_it_was_or_wholly_quantized(scheme: str) -> None:
    """Wherever Ctrl-C comes; and quantize_ called again does what is left."""
    torch.manual_seed(0)
    floats = model_of_layers()
    config = CONFIGS[scheme](floats)
    whole = copy.deepcopy(floats)
    lines = Interrupter(0)
    assert not lines.during(lambda: ao_arm.quantize_(whole, config))
    expected = outputs(whole), outputs(floats)
    step = max(1, lines.lines // 30)
    seen = set()
    for line in range(1, lines.lines, step):
        model = copy.deepcopy(floats)
        assert Interrupter(line).during(lambda model=model: ao_arm.quantize_(model, config)), line
        for at, (layer, output) in enumerate(zip(model, outputs(model), strict=True)):
            quantized = ao_arm.packed_weight_of(layer.weight) is not None
            seen.add((at, quantized))
            assert quantized or hasattr(layer, "activation_observer") == hasattr(floats[at], "activation_observer")
            assert torch.equal(output, expected[0 if quantized else 1][at]), (line, at)
        assert repr(model) and len(model.state_dict()) >= 8
        ao_arm.quantize_(model, config)
        assert all(map(torch.equal, outputs(model), expected[0])), line
        assert not any("observer" in name for name, _ in model.named_modules())
    assert {(0, False), (0, True), (3, False)} <= seen


@pytest.mark.parametrize("line", range(1, 12))
def test_a_file_is_whole_or_absent_wherever_ctrl_c_comes(line: int, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"

    def write() -> None:
        with command_line.whole_file("bench", file) as part:
            part.write_text("whole")

    interrupted = Interrupter(line).during(write)
    assert not file.exists() or file.read_text() == "whole"
    assert interrupted or file.exists()
    assert {path.name for path in tmp_path.iterdir()} <= {file.name}


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may become larger than 100 bytes."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_ends_bench_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured is shown, and the file of before stays."""
    file = tmp_path / "results.json"
    file.write_text("before")
    with full_disk(), pytest.raises(SystemExit) as ended:
        bench("--shapes", "2x32x32", "--no-timing", "--json", str(file))
    assert ended.value.code == f"ao_arm bench: {file} was not written, and is as it was: File too large"
    assert "results: SQNR to fp32" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_text() == "before"


def test_a_failing_write_leaves_the_file_of_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert bench("--shapes", "2x32x32", "--no-timing", "--json", str(file)) == 0
    before = file.read_text()
    assert json.loads(before)["measurements"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.Results, "write", full)
    with pytest.raises(SystemExit, match="was not written, and is as it was: No space left on device"):
        bench("--shapes", "2x32x32", "--no-timing", "--json", str(file))
    assert file.read_text() == before and [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_full_standard_output_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["info"]) == 1
    assert capsys.readouterr().err == "ao_arm info: No space left on device\n"


def test_devices_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    with command_line.whole_file("bench", Path(os.devnull)) as part:
        part.write_text("nothing")
    assert not Path(os.devnull).is_file()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with command_line.whole_file("bench", tmp_path / "link") as part:
        part.write_text("whole")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "whole"


def test_ctrl_c_ends_the_demo_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the signal itself."""
    monkeypatch.setattr(figures, "measure", lambda *_: signal.raise_signal(signal.SIGINT))
    # Shells start what runs in the background with the signal ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["demo", "--no-timing", "--json", str(tmp_path / "figures.json")]) == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == "ao_arm demo: interrupted"
    assert [*tmp_path.iterdir()] == []


def test_a_full_disk_while_a_checkpoint_is_written_is_an_error(tmp_path: Path) -> None:
    """torch.save writes in place: what is there afterwards is refused when it is read."""
    model = cases.packed(torch.randn(64, 64))

    class Full:
        """A file for which there are so many bytes left."""

        def __init__(self, left: int) -> None:
            self.left, self.content = left, bytearray()

        def write(self, content: bytes) -> int:
            if len(content) > self.left:
                raise OSError(28, "No space left on device")
            self.left -= len(content)
            self.content += content
            return len(content)

        def flush(self) -> None:
            """Everything is written."""

    size = len(cases.saved(model).getvalue())
    for left in range(0, size, size // 7):
        file: Any = Full(left)
        with pytest.raises((OSError, RuntimeError)):
            torch.save(model, file)
        path = tmp_path / "model.pt"
        path.write_bytes(file.content)
        with pytest.raises((RuntimeError, EOFError, OSError)):
            torch.load(path, weights_only=True)
