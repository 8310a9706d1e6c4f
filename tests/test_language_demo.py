"""The demo with a language model: a tiny Llama of random weights for what it does."""

import dataclasses
import importlib.util
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny_language_model as tiny
import torch
from torchao.quantization import quantize_

import ao_arm
from ao_arm import timing
from ao_arm.__main__ import main
from ao_arm.demo import language_figures, language_model, language_tables, latency, text
from ao_arm.demo.errors import DemoError
from ao_arm.demo.language_figures import QUANTIZED
from ao_arm.demo.language_model import LanguageModel
from ao_arm.sqnr import sqnr_db

pytestmark = [
    pytest.mark.x86,
    pytest.mark.skipif(
        any(importlib.util.find_spec(package) is None for package in ("transformers", "gguf")),
        reason="pip install 'ao_arm[demo]'",
    ),
]

PER_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LanguageModel:
    """With what `search=True` needs."""
    loaded = LanguageModel(folder, "tiny")
    ao_arm.observe_importance(loaded.model, [{"input_ids": loaded.tokens(tiny.TEXT, 64)}])
    return loaded


def test_the_cache_changes_no_token(loaded: LanguageModel) -> None:
    prompt = loaded.tokens(tiny.TEXT, 9)
    logits, cache = language_model.read_prompt(loaded.model, prompt)
    assert logits.shape == (9, len(tiny.TOKENS))
    found = language_model.continue_prompt(loaded.model, logits, cache, 6)
    tokens = prompt[0].tolist()
    for _ in range(6):
        whole, _ = language_model.read_prompt(loaded.model, torch.tensor([tokens]))
        tokens.append(int(whole[-1].argmax()))
    assert found == tokens[9:]
    assert cache.get_seq_length() == 9 + 5
    language_model.decode_again(loaded.model, torch.tensor([found[-1:]]), cache)
    assert cache.get_seq_length() == 9 + 5


def test_perplexity() -> None:
    tokens = torch.tensor([[0, 1, 2, 3]])
    assert language_model.perplexity(torch.zeros(4, 10), tokens) == pytest.approx(10)
    sure = 50 * torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 9]), 10).float()
    assert language_model.perplexity(sure, tokens) == pytest.approx(1)
    sure[0] = 0  # one of three is a choice of ten
    assert language_model.perplexity(sure, tokens) == pytest.approx(10 ** (1 / 3))


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_model_is_quantized_throughout(name: str, loaded: LanguageModel) -> None:
    quantized = language_figures.quantized(name, loaded.model, QUANTIZED[name])
    tokens = loaded.tokens(tiny.TEXT, 64)
    logits, exact = (language_model.read_prompt(model, tokens)[0] for model in (quantized, loaded.model))
    assert sqnr_db(exact, logits) > (25 if "int8" in name else 8)
    embeddings = [model.get_parameter("model.embed_tokens.weight") for model in (quantized, loaded.model)]
    assert embeddings[0] is embeddings[1], "what is not quantized is shared"
    if "torchao" in name:
        assert not any(layer.packing_format for layer in ao_arm.explain(quantized))
        return
    floats = language_model.dequantized(quantized)
    layers = 0
    for packed, plain, original in zip(quantized.modules(), floats.modules(), loaded.model.modules(), strict=True):
        if isinstance(packed, torch.nn.Linear):
            assert type(plain.weight.data) is torch.Tensor
            assert torch.equal(plain.weight, packed.weight.dequantize())
            assert not torch.equal(plain.weight, original.weight)
            layers += 1
    assert layers == 2 * len(PER_LAYER) + 1


def test_layers_that_are_not_quantized_stay_as_they_are(loaded: LanguageModel) -> None:
    quantized = language_figures.quantized(
        "head",
        loaded.model,
        lambda model: quantize_(model, ao_arm.acl_int8_dynamic(), lambda _, name: name == "lm_head"),
    )
    floats = language_model.dequantized(quantized)
    for name, layer in loaded.model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            assert torch.equal(floats.get_submodule(name).weight, layer.weight) == (name != "lm_head")


@pytest.mark.slow
def test_figures_and_table(
    loaded: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "SECONDS_FOR_A_BATCH", 0.0)
    monkeypatch.setattr(language_figures, "TEXT_TOKENS", 200)
    # A clock of ticks, so that figures are what they are on any machine.
    monkeypatch.setattr(timing.time, "perf_counter", partial(next, itertools.count(step=12345)))
    reported: list[str] = []
    figures = language_figures.measure(lambda: loaded, text.Text("a rhyme", tiny.TEXT), True, reported.append)
    assert len(reported) == language_figures.steps(True)
    assert tuple(figures.models) == ("fp32", *QUANTIZED)
    fp32 = figures.models["fp32"]
    tokens = loaded.tokens(tiny.TEXT, 200)
    with torch.inference_mode():
        loss = loaded.model(tokens, labels=tokens).loss
    assert fp32.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
    assert fp32.sqnr_to_fp32_db is None and fp32.tokens_as_fp32 == language_figures.GENERATED_TOKENS
    assert fp32.linear_bytes == 4 * (2 * (192 * 192 * 2 + 192 * 64 * 2 + 192 * 384 * 3) + len(tiny.TOKENS) * 192)
    for name, model in figures.models.items():
        assert model.perplexity == pytest.approx(fp32.perplexity, rel=0.2)
        assert (model.prefill.batch, model.prefill.tokens) == (1, language_figures.PREFILL_TOKENS)
        assert (model.decode.batch, model.decode.tokens) == (1, 1)
        assert sum(use.layers for use in model.kernels) == (0 if name == "fp32" or "torchao" in name else 15)
        assert model.not_quantized == ()
    language_tables.show(figures)
    title, header, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "tiny"
    assert header.split("  ")[-1].strip() == "decode, tokens/s"
    first = lines[0].split()
    assert first[:3] == ["fp32", f"{fp32.linear_bytes / 1e6:.1f}", f"{fp32.perplexity:.2f}"]
    assert [line.rpartition(" of 32")[0] != "" for line in lines[: len(QUANTIZED) + 1]] == [False] + [True] * len(
        QUANTIZED
    )
    assert "first 200 tokens of a rhyme" in "\n".join(lines)
    json.dumps(dataclasses.asdict(figures))


@pytest.mark.parametrize("sqnr", [float("nan"), 3.0])
def test_wrong_logits_are_an_error(sqnr: float) -> None:
    with pytest.raises(DemoError, match=r"^the logits of int4 are wrong"):
        language_figures.check("int4", sqnr)


def test_a_text_without_tokens_is_an_error(loaded: LanguageModel) -> None:
    with pytest.raises(DemoError, match=r"^nothing.txt holds 0 tokens; a text needs 2 or more"):
        language_figures.measure(lambda: loaded, text.Text("nothing.txt", ""), False, lambda step: None)


def test_same_first_tokens() -> None:
    assert language_figures.same_first([1, 2, 3, 4], [1, 2, 5, 4]) == 2
    assert language_figures.same_first([1, 2], [1, 2]) == 2
    assert language_figures.same_first([0], [1]) == 0


def test_the_text_is_the_licence_or_the_manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LICENCE", tmp_path / "GPL-3")
    assert text.licence_or_manual() == text.manual()
    assert len(text.manual().content) > 20_000
    (tmp_path / "GPL-3").write_text("§ freedom", encoding="utf-8")
    assert text.licence_or_manual() == text.Text("GPL-3", "§ freedom")
    # A Python that was installed without its manual.
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    (tmp_path / "GPL-3").unlink()
    with pytest.raises(DemoError, match=r"^there is no text to measure a perplexity with.* --text FILE"):
        text.licence_or_manual()


def test_the_command_takes_a_folder_and_a_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_figures, "QUANTIZED", {"int8": QUANTIZED["int8, symmetric"]})
    (tmp_path / "rhyme.txt").write_text(tiny.TEXT)
    file = tmp_path / "figures.json"
    options = ["--folder", str(folder), "--text", str(tmp_path / "rhyme.txt"), "--no-timing", "--json", str(file)]
    assert main(["demo", "--model", "smollm2", *options]) == 0
    figures = json.loads(file.read_text())
    assert (figures["text"], list(figures["models"])) == ("rhyme.txt", ["fp32", "int8"])
    assert figures["models"]["int8"]["prefill"] is None
    assert "tokens/s" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "smollm2", "--scheme", "int4"), "--scheme and --activations are for minilm"),
        (("--model", "smollm2", "--activations", "symmetric"), "--scheme and --activations are for minilm"),
        (("--folder", "."), "--text and --folder are for --model smollm2"),
    ],
)
def test_options_of_the_other_model_are_refused(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["demo", *options])


@pytest.mark.parametrize(("option", "kind"), [("--text", "file"), ("--folder", "folder")])
def test_what_is_not_there_is_named(option: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--model", "smollm2", option, "nowhere"])
    assert f"there is no {kind} " in capsys.readouterr().err


def test_the_emulated_demo_gets_a_converted_model(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Converting takes long there."""
    from ao_arm.demo import command, emulated

    asked: list[list[str]] = []
    monkeypatch.setattr(command.smollm2, "model_folder", lambda report: folder)
    monkeypatch.setattr(command, "run_emulated", lambda args: asked.append(emulated._emulated_arguments(args)) or 3)
    assert main(["demo", "--arm64", "--model", "smollm2"]) == 3
    assert asked == [["-m", "ao_arm", "demo", "--model", "smollm2", "--folder", str(folder)]]
