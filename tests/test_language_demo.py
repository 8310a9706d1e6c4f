"""The demo with a language model: a small Llama for what it does, and the real one for its figures."""

import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torchao.quantization import quantize_

import ao_arm
from ao_arm import timing
from ao_arm.__main__ import main
from ao_arm.demo import language_figures, language_model, language_tables, latency
from ao_arm.demo.errors import DemoError
from ao_arm.demo.language_figures import Agreement

pytestmark = [
    pytest.mark.x86,
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None,
        reason="pip install 'ao_arm[demo]'",
    ),
]

TINY = language_model.Size(64, 2, 4, 2, 96, 128, embedding_spread=2.0)
PER_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def tiny() -> Iterator[torch.nn.Module]:
    yield language_model.make_model(TINY)


def test_the_model_is_the_same_each_time_and_leaves_the_generator_alone(tiny: torch.nn.Module) -> None:
    state = torch.get_rng_state()
    again = language_model.make_model(TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), again.parameters(), strict=True))


def test_the_cache_changes_no_token(tiny: torch.nn.Module) -> None:
    prompt = language_model.make_prompt(TINY, 9)
    logits, cache = language_model.read_prompt(tiny, prompt)
    assert logits.shape == (9, 128)
    found = language_model.continue_prompt(tiny, logits, cache, 6)
    tokens = prompt[0].tolist()
    for _ in range(6):
        whole, _ = language_model.read_prompt(tiny, torch.tensor([tokens]))
        tokens.append(int(whole[-1].argmax()))
    assert found == tokens[9:]
    assert len(set(found)) > 1, "a model that repeats one token shows little"
    assert cache.get_seq_length() == 9 + 5
    language_model.decode_again(tiny, torch.tensor([found[-1:]]), cache)
    assert cache.get_seq_length() == 9 + 5


@pytest.mark.parametrize("name", language_figures.QUANTIZED)
def test_dequantized_models_hold_the_quantized_weights_as_floats(name: str, tiny: torch.nn.Module) -> None:
    quantized = language_figures.quantized(name, tiny, language_figures.QUANTIZED[name])
    floats = language_model.dequantized(quantized)
    layers = 0
    for packed, plain, original in zip(quantized.modules(), floats.modules(), tiny.modules(), strict=True):
        if isinstance(packed, torch.nn.Linear):
            assert type(plain.weight.data) is torch.Tensor
            assert torch.equal(plain.weight, packed.weight.dequantize())
            assert not torch.equal(plain.weight, original.weight)
            layers += 1
    assert layers == 2 * len(PER_LAYER) + 1


def test_layers_that_are_not_quantized_stay_as_they_are(tiny: torch.nn.Module) -> None:
    quantized = language_figures.quantized(
        "head", tiny, lambda model: quantize_(model, ao_arm.acl_int8_dynamic(), lambda _, name: name == "lm_head")
    )
    floats = dict(language_model.dequantized(quantized).named_parameters())
    for name, weight in tiny.named_parameters():
        assert torch.equal(floats[name], weight) == (name != "lm_head.weight")


def test_the_mixed_model_has_4_bits_in_its_mlps_only(tiny: torch.nn.Module) -> None:
    mixed = language_figures.quantized("mixed", tiny, language_figures.QUANTIZED["mixed"])
    explained = {layer.name: layer.scheme for layer in ao_arm.explain(mixed)}
    assert len(explained) == 2 * len(PER_LAYER) + 1
    for name, scheme in explained.items():
        assert ("int4" in scheme) == ("mlp" in name), (name, scheme)
        assert scheme != "not quantized"


def test_figures_and_table_of_a_small_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "SECONDS_FOR_A_BATCH", 0.0)
    # A clock of ticks, so that figures are what they are on any machine, and wider than on most.
    monkeypatch.setattr(timing.time, "perf_counter", partial(next, itertools.count(step=12345)))
    monkeypatch.setenv("COLUMNS", "40")
    reported: list[str] = []
    figures = language_figures.measure_size(TINY, True, reported.append)
    assert len(reported) == language_figures.steps(True)
    assert tuple(figures.models) == ("fp32", "int8", "int4", "mixed")
    fp32 = figures.models["fp32"]
    assert fp32.agreement is None
    assert fp32.linear_bytes == 4 * (2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3) + 128 * 64)
    for model in figures.models.values():
        assert model.prefill is not None and model.decode is not None
        assert (model.prefill.batch, model.prefill.tokens) == (1, language_figures.PROMPT_TOKENS)
        assert (model.decode.batch, model.decode.tokens) == (1, 1)
        assert model.prefill.median_ms == model.decode.median_ms == 12345e3
    language_tables.show(figures)
    title, header, rule, *lines = capsys.readouterr().out.splitlines()
    assert "hidden 64" in title
    assert header.split() == ["fp32", "int8", "dynamic", "int4", "groups", "mixed"]
    assert len(rule) == len(header) > 80
    assert [line.split("  ")[0] for line in lines[:9]][-1] == "decode, tokens/s"
    json.dumps(dataclasses.asdict(figures))


@pytest.mark.parametrize(("sqnr", "same"), [(float("nan"), 32), (3.0, 32), (30.0, 2)])
def test_wrong_logits_are_an_error(sqnr: float, same: int) -> None:
    with pytest.raises(DemoError, match=r"^the logits of int4 are wrong"):
        language_figures.check("int4", Agreement(sqnr, 10.0, same, 2))


def test_same_first_tokens() -> None:
    assert language_figures.same_first([1, 2, 3, 4], [1, 2, 5, 4]) == 2
    assert language_figures.same_first([1, 2], [1, 2]) == 2
    assert language_figures.same_first([0], [1]) == 0


@pytest.mark.parametrize("options", [("--scheme", "int4"), ("--activations", "symmetric")])
def test_options_of_the_encoder_are_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="--scheme and --activations are for minilm"):
        main(["demo", "--model", "llama", *options])


@pytest.mark.slow
def test_the_real_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main(["demo", "--model", "llama", "--no-timing", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    fp32, int8, int4, mixed = figures["models"].values()
    # Measured on x86: all 32 tokens are the same; to the dequantized weights 26.7, 27.4 and 27.4 dB, to fp32 25.2, 10.0
    # and 11.9 dB.
    for model, to_fp32 in ((int8, 23), (int4, 9), (mixed, 10.5)):
        agreement = model["agreement"]
        assert agreement["sqnr_to_dequantized_db"] > 25
        assert agreement["sqnr_to_fp32_db"] > to_fp32
        assert agreement["tokens_as_dequantized"] >= 16
        assert agreement["tokens_as_fp32"] >= 16
        assert model["not_quantized"] == []
        assert sum(use["layers"] for use in model["kernels"]) == 4 * len(PER_LAYER) + 1
        assert model["prefill"] is None
    # 8 and 4 bits for each value, and 16 for the scale of each 32.
    assert int8["linear_bytes"] < 0.26 * fp32["linear_bytes"]
    assert int4["linear_bytes"] < 0.145 * fp32["linear_bytes"]
    assert int4["linear_bytes"] < mixed["linear_bytes"] < int8["linear_bytes"]
    output = capsys.readouterr().out
    assert "No times" not in output and "32 of 32" in output
