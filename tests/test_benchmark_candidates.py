"""The benchmark's candidates: wrong ones are found and not timed; a whole model's."""

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarked import EAGER, OURS, bench, measured, row_of

from ao_arm.benchmark import measuring, results
from ao_arm.benchmark.candidates import BASELINE, CANDIDATES
from ao_arm.benchmark.verification import relative_difference
from ao_arm.demo.encoder import MODEL_PACKAGE


@pytest.fixture(autouse=True)
def _nothing_stays_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.x86
def test_names_are_unique_and_the_baseline_comes_first() -> None:
    names = [row.name for row in CANDIDATES]
    assert len(set(names)) == len(names)
    assert names[0] == BASELINE


@pytest.mark.one_cpu
@pytest.mark.parametrize("shape", ["1x128x40", "5x128x256"])
def test_every_candidate_is_right_or_says_why_it_does_not_run(shape: str) -> None:
    found = measured(*EAGER, shape=shape)
    assert list(found) == [row.name for row in EAGER]
    for candidate in EAGER:
        row = found[candidate.name]
        assert not row.wrong, f"{row.candidate}: {row.complaint}"
        assert (row.sqnr_db is None) == bool(row.complaint)
    for name in (BASELINE, "bf16", OURS):
        assert not found[name].complaint
    assert found[OURS].reference_difference == 0.0


@pytest.mark.x86
@pytest.mark.slow
def test_compiled_candidates_are_right() -> None:
    rows = [row for row in CANDIDATES if row.backend]
    found = measured(*rows, shape="3x128x40")
    for row in rows:
        assert not found[row.name].wrong
        # Others may not compile: torchao 0.16's static layers do not.
        assert not found[row.name].complaint or not row.name.startswith((BASELINE, "ao_arm"))
    assert found[f"{OURS} compiled"].reference_difference == 0.0
    assert not any(found[row.name].complaint for row in rows if row.name.startswith("torchao int8 dynamic"))


@pytest.mark.x86
@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("torchao int8 dynamic", 8), ("torchao int4 g32", 4)])
def test_fusing_adds_a_packed_weight_and_no_floats(name: str, bits: int) -> None:
    found = measured(*(row_of(f"{name}{suffix}") for suffix in ("", " compiled", " fused")), shape="3x256x512")
    eager, compiled, fused = found.values()
    values = 256 * 512
    assert eager.added_bytes is None and eager.weight_bytes is not None and eager.weight_bytes >= values
    assert fused.added_bytes is not None and compiled.added_bytes is not None
    # Scales, sums, padding and a header are the rest.
    assert values * bits / 8 <= fused.added_bytes < 1.3 * values * bits / 8 + 4096
    if bits == 4:
        assert compiled.added_bytes >= 4 * values  # floats
    assert {row.weight_bytes for row in found.values()} == {eager.weight_bytes}


@pytest.mark.x86
@pytest.mark.slow
def test_what_is_compiled_is_held_against_eager_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    right = measuring.frozen

    def shuffled(*arguments: Any) -> Any:
        function, output = right(*arguments)
        return function, output.flip(0)

    monkeypatch.setattr(measuring, "frozen", shuffled)
    row = dataclasses.replace(row_of("torchao int8 dynamic fused"), least_sqnr_db=-100)
    monkeypatch.setattr(measuring, "LEAST_DB", -100)
    found = measured(row, timed=True)[row.name]
    assert found.wrong and found.timing is None
    assert found.complaint.startswith("its SQNR to the same layers in eager mode is")


class Wrong(torch.nn.Module):
    """A layer with some error."""

    def __init__(self, layer: torch.nn.Module, error: float) -> None:
        super().__init__()
        self.layer, self.error = layer, error

    @property
    def weight(self) -> torch.Tensor:
        return self.layer.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = self.layer(input).clone()
        output[0, 0] += self.error
        return output


@pytest.mark.x86
@pytest.mark.parametrize(
    ("error", "complaint", "compiled"),
    [
        (1e-5, "it differs from its reference by", False),
        pytest.param(1e-5, "it differs from its reference by", True, marks=pytest.mark.slow),
        (50.0, "its SQNR to fp32 is", False),
        (float("nan"), "its SQNR to fp32 is nan dB, and at least 33 dB are expected", False),
        (float("inf"), "its SQNR to fp32 is", False),
    ],
)
def test_a_wrong_candidate_is_found_and_not_timed(error: float, complaint: str, compiled: bool) -> None:
    ours = row_of(OURS)
    wrong = dataclasses.replace(
        ours, name="wrong", make=lambda *args: Wrong(ours.make(*args), error), backend="inductor" if compiled else ""
    )
    found = measured(ours, wrong, timed=True)
    assert not found[OURS].complaint and found[OURS].timing
    assert found["wrong"].wrong
    assert complaint in found["wrong"].complaint
    assert found["wrong"].timing is None


@pytest.mark.x86
def test_a_tolerance_is_relative_to_the_largest_value() -> None:
    expected = torch.tensor([-4.0, 1.0])
    assert relative_difference(expected, expected.clone()) == 0.0
    assert relative_difference(torch.tensor([-4.0, 1.5]), expected) == 0.125
    near = dataclasses.replace(row_of(OURS), name="near", tolerance=1e-3)
    near = dataclasses.replace(near, make=lambda *args: Wrong(row_of(OURS).make(*args), 1e-5))
    found = measured(near)["near"]
    assert not found.complaint
    assert found.reference_difference is not None and 0 < found.reference_difference < 1e-3


@pytest.mark.x86
def test_a_wrong_shape_is_found() -> None:
    broken = dataclasses.replace(row_of("bf16"), name="broken", make=lambda *_: torch.nn.Flatten(0))
    found = measured(broken)["broken"]
    assert found.wrong
    assert found.complaint == "its output has the shape (192,) instead of (3, 40)"


@pytest.mark.x86
def test_what_cannot_be_built_or_run_is_left_out_with_the_reason() -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("no such engine\nand a long trace")

    bf16 = row_of("bf16")
    rows = (
        dataclasses.replace(bf16, name="here not", obstacle=lambda: "it needs another CPU"),
        dataclasses.replace(bf16, name="build", make=fails),
        dataclasses.replace(bf16, name="run", make=lambda linear, _: torch.nn.Linear(3, 3)),
    )
    found = measured(*rows)
    assert found["here not"].complaint == "it needs another CPU"
    assert found["build"].complaint == "no such engine"
    assert found["run"].complaint
    assert not any(row.wrong for row in found.values())


@pytest.mark.x86
def test_a_group_size_that_does_not_fit_is_a_reason() -> None:
    assert measured(row_of("torch int4 g128"))["torch int4 g128"].complaint == (
        "k = 64 is not a multiple of the group size 128"
    )


@pytest.mark.slow
@pytest.mark.x86
def test_a_whole_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if any(importlib.util.find_spec(package) is None for package in ("transformers", MODEL_PACKAGE)):
        pytest.skip("pip install 'ao_arm[demo]'")
    file = tmp_path / "results.json"
    assert bench("--model", "minilm", "--no-timing", "--json", str(file)) == 0
    found = results.read(file)
    ours = [row for row in found.measurements if row.candidate == OURS]
    assert len(ours) == 2
    for row in ours:
        assert row.sqnr_db is not None and row.sqnr_db > 15
        assert row.reference_difference == 0.0
    assert not any(row.complaint for row in found.measurements)
    assert "all-MiniLM-L6-v2, 1 x 15 tokens" in {row.name for row in found.measurements}
