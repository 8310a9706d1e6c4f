"""The demo: what its figures are made of, its options, and how it ends when it cannot go on."""

import argparse
import dataclasses
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torchao.quantization import quantize_

import ao_arm
from ao_arm import _ops, kernels, timing
from ao_arm.__main__ import SUBCOMMANDS, main
from ao_arm.demo import emulated, encoder, latency, schemes
from ao_arm.demo.accuracy import compare
from ao_arm.demo.command import DEMOS
from ao_arm.demo.errors import DemoError
from ao_arm.demo.figures import MODELS, kernel_uses, linear_bytes

PACKAGES = ("transformers", encoder.MODEL_PACKAGE)
needs_model = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES), reason="pip install 'ao_arm[demo]'"
)

pytestmark = pytest.mark.x86


class TinyEncoder(torch.nn.Module):
    """As ``embed`` calls it, but small."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, 16)
        self.first = torch.nn.Linear(16, 24)
        self.second = torch.nn.Linear(24, 8)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.second(self.first(self.table(input_ids))))


def tiny_batch() -> dict[str, torch.Tensor]:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    return {"input_ids": torch.tensor([[1, 2, 3], [4, 0, 0]]), "attention_mask": mask}


def test_embeddings_are_means_over_the_tokens_of_a_sentence() -> None:
    model, batch = TinyEncoder(), tiny_batch()
    embeddings = encoder.embed(model, batch)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    alone = {name: tensor[1:, :1] for name, tensor in batch.items()}
    torch.testing.assert_close(embeddings[1:], encoder.embed(model, alone))


def test_each_model_is_timed_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS_FOR_A_BATCH", 0.0)
    monkeypatch.setattr(timing.time, "perf_counter", partial(next, itertools.count()))
    latencies = latency.time_models(dict.fromkeys(MODELS, TinyEncoder()), tiny_batch())
    assert tuple(latencies) == MODELS
    for found in latencies.values():
        assert (found.batch, found.tokens) == (2, 3)
        assert found.rounds == latency.LEAST_ROUNDS
        assert (found.median_ms, found.spread_ms) == (1000.0, 0.0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_wrong_embeddings_are_an_error(wrong: float) -> None:
    reference = torch.nn.functional.normalize(torch.randn(len(encoder.SENTENCES), 8, generator=torch.manual_seed(0)))
    with pytest.raises(DemoError, match=r"^the embeddings of ao_arm are wrong"):
        compare("ao_arm", reference, reference * wrong, 0.9)


@needs_model
@pytest.mark.parametrize("model", DEMOS)
def test_an_error_of_the_demo_is_one_line(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise DemoError("it is wrong")

    monkeypatch.setitem(DEMOS, model, dataclasses.replace(DEMOS[model], packages=(), measure=fail))
    with pytest.raises(SystemExit, match=r"^ao_arm demo: it is wrong$"):
        main(["demo", "--model", model])


def test_accuracy_of_slightly_wrong_embeddings() -> None:
    reference = torch.nn.functional.normalize(torch.randn(40, 64, generator=torch.manual_seed(0)))
    accuracy = compare("ao_arm", reference, 0.99 * reference, 0.98)
    assert accuracy.sqnr_db == pytest.approx(40.0, abs=1e-3)
    assert accuracy.mean_cosine == pytest.approx(0.99, abs=1e-6)
    assert accuracy.same_neighbour == 40


def test_bytes_of_packed_and_shared_weights_are_counted_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    model[1].weight = model[0].weight
    assert linear_bytes(model) == 64 * 64 * 4
    quantize_(model[0], ao_arm.acl_int8_dynamic())
    packed_bytes = _ops.packed_bytes(64, 64, kernels.select(64, 64))
    assert linear_bytes(model[:1]) == packed_bytes + 64 * 4


def test_kernels_are_counted_and_layers_left_out_are_named() -> None:
    model = TinyEncoder()
    quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=lambda module, name: name == "first")
    uses, not_quantized = kernel_uses(model)
    assert [(use.kernel, use.layers) for use in uses] == [(kernels.select(24, 16), 1)]
    assert not_quantized == ("second",)


def test_an_unfit_forced_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.FORCE, "none/such")
    with pytest.raises(DemoError, match=r"^ao_arm cannot quantize the model: .*none/such"):
        schemes.quantized("ao_arm", TinyEncoder(), lambda model: quantize_(model, ao_arm.acl_int8_dynamic()))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    message = str(ended.value)
    assert package in message
    assert "pip install 'ao_arm[demo]'" in message
    assert "\n" not in message


@pytest.mark.parametrize("options", [("--scheme", "int3"), ("--threads", "0"), ("--json", "/no/such/folder/file")])
def test_wrong_options(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", *options])
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_every_subcommand_has_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    output = " ".join(capsys.readouterr().out.split())
    assert all(row.summary in output for row in SUBCOMMANDS)


# --- the emulated machine, replaced by one that only notes what it is asked to run ---


class NoMachineError(RuntimeError):
    """Stands for the two errors of the real module."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    commands: list[tuple[str, list[str]]] = []

    class Machine:
        def __init__(self, report: object) -> None: ...

        @contextmanager
        def start(self, cpu: str, args: list[str], stdout: None) -> Iterator[SimpleNamespace]:
            commands.append((cpu, args))
            yield SimpleNamespace(wait=lambda: 3)

    module = ModuleType("machine")
    vars(module).update(
        CPUS=("neoverse-v1", "max"), Machine=Machine, Unavailable=NoMachineError, BuildError=NoMachineError
    )
    monkeypatch.setitem(sys.modules, "machine", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(emulated, "emulated_machine_folder", lambda: Path("tests/arm64"))
    return commands


def test_the_emulated_demo_gets_the_same_options(started: list[tuple[str, list[str]]], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--activations", "symmetric", "--threads", "1", "--json", str(file)]
    assert main(["demo", "--arm64", "--cpu", "max", *options]) == 3
    ((cpu, args),) = started
    assert cpu == "max"
    assert args == [
        *("-m", "ao_arm", "demo", "--model", "minilm", *options),
    ]


def test_the_emulated_demo_gets_the_model_and_the_scheme(started: list[tuple[str, list[str]]]) -> None:
    main(["demo", "--arm64", "--scheme", "int4"])
    assert [args[3:] for _, args in started] == [["--model", "minilm", "--scheme", "int4"]]


def test_an_unknown_emulated_cpu_is_one_line(started: list[tuple[str, list[str]]]) -> None:
    with pytest.raises(SystemExit, match="--cpu must be one of neoverse-v1, max, not 8086"):
        main(["demo", "--arm64", "--cpu", "8086"])
    assert not started


def test_an_unavailable_emulated_machine_is_one_line(
    started: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(report: object) -> None:
        raise NoMachineError("there is no emulator")

    monkeypatch.setattr(sys.modules["machine"], "Machine", unavailable)
    with pytest.raises(SystemExit, match=r"ao_arm demo: .*there is no emulator"):
        main(["demo", "--arm64"])


def test_the_checkout_is_found_around_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "__file__", str(tmp_path / "site-packages/ao_arm/demo/emulated.py"))
    inside = tmp_path / "checkout" / "tutorials"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with pytest.raises(DemoError, match=r"^--arm64 needs a source checkout"):
        emulated.run_emulated(argparse.Namespace())
    folder = tmp_path / "checkout" / "tests" / "arm64"
    folder.mkdir(parents=True)
    (folder / "machine.py").touch()
    assert emulated.emulated_machine_folder() == folder
