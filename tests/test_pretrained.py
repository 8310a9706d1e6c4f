"""Models of transformers that were quantized by hand: written by save_pretrained, read by from_pretrained."""

import json
from collections import OrderedDict
from pathlib import Path

import cases
import pytest
import torch
from models import is_packed, quantized_layers
from pretrained import (
    CONFIGS,
    STATIC,
    assert_same_model,
    language_model,
    linear_but_head,
    outputs,
    read,
    transformers,
)
from tensors import assert_same_weight
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig, quantize_

import ao_arm
from ao_arm import packed_weight_of
from ao_arm.pretrained import config_of, config_of_model

pytestmark = pytest.mark.one_cpu

MIXED = {"q_proj": CONFIGS["dynamic"], "k_proj": STATIC, "mlp.": CONFIGS["grouped"]}


def quantize_mixed(model: torch.nn.Module) -> None:
    """Some layers one way, some another, and some not at all."""
    by_name = OrderedDict(
        (name, config)
        for name, module in model.named_modules()
        for part, config in MIXED.items()
        if isinstance(module, torch.nn.Linear) and part in name
    )
    quantize_(model, FqnToConfig(by_name), filter_fn=None)


@pytest.mark.parametrize("config", cases.thinned([*CONFIGS.values()]), ids=cases.thinned([*CONFIGS]))
def test_save_pretrained_writes_what_from_pretrained_reads(config: AOBaseConfig, tmp_path: Path) -> None:
    model = language_model()
    quantize_(model, config, filter_fn=linear_but_head)
    model.save_pretrained(tmp_path)
    assert_same_model(read(tmp_path), model)
    # Nothing of it stays with the model, which transformers would no longer train or move.
    assert not hasattr(model, "hf_quantizer") and not hasattr(model.config, "quantization_config")


def test_mixed_schemes_in_shards(tmp_path: Path) -> None:
    model = language_model()
    quantize_mixed(model)
    assert 0 < len(quantized_layers(model)) < 14
    ao_arm.save_pretrained(model, tmp_path, max_shard_size="30KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    back = read(tmp_path)
    assert_same_model(back, model)
    again = tmp_path / "again"  # the model has transformers' own quantizer now
    back.save_pretrained(again)
    assert_same_model(read(again), model)


def test_a_tied_head_stays_tied_to_its_embedding(tmp_path: Path) -> None:
    model = language_model(tied=True)
    quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=linear_but_head)
    model.save_pretrained(tmp_path)
    back = read(tmp_path)
    assert_same_model(back, model)
    assert back.get_parameter("lm_head.weight") is back.get_parameter("model.embed_tokens.weight")


def test_4_bit_files_hold_4_bits(tmp_path: Path) -> None:
    model = language_model()
    quantize_(model, ao_arm.acl_int4_grouped(), filter_fn=linear_but_head)
    model.save_pretrained(tmp_path)
    linear = sum(m.weight.numel() for name, m in model.named_modules() if linear_but_head(m, name))
    floats = sum(p.nbytes for p in model.parameters() if packed_weight_of(p) is None)
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little") + 8
    assert (tmp_path / "model.safetensors").stat().st_size - header == 0.5625 * linear + floats


def test_what_is_no_such_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a Linear has no save_pretrained.*torch\.save"):
        ao_arm.save_pretrained(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match="holds no weight that ao_arm quantized: quantize_ it first"):
        ao_arm.save_pretrained(language_model(), tmp_path)


def test_a_float_model_is_written_as_before(tmp_path: Path) -> None:
    language_model().save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(outputs(read(tmp_path)), outputs(language_model()))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_configuration_of_a_weight_makes_it_again(config: AOBaseConfig) -> None:
    layer, other = torch.nn.Linear(64, 32), torch.nn.Linear(64, 32)
    other.load_state_dict(layer.state_dict())
    quantize_(layer, config)
    quantize_(other, config_of(cases.packed_in(layer)))
    assert_same_weight(cases.packed_in(other), cases.packed_in(layer))


def test_a_model_of_one_scheme_has_one_configuration() -> None:
    model = language_model()
    assert config_of_model(model) is None
    quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=linear_but_head)
    assert config_of_model(model) == ao_arm.acl_int8_dynamic()


def test_trainer_writes_checkpoints_that_from_pretrained_reads(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = language_model()
    quantize_(model, CONFIGS["grouped"], filter_fn=linear_but_head)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("lm_head"))
    head = model.lm_head.weight.clone()
    tokens = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 2
    settings = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], max_steps=2, save_steps=2, disable_tqdm=True
    )
    trainer = transformers.Trainer(model, settings, train_dataset=tokens)
    trainer.train()
    assert not torch.equal(model.lm_head.weight, head)
    assert_same_model(read(tmp_path / "checkpoint-2"), model.eval())
    trainer.save_model(str(tmp_path / "last"))
    assert_same_model(read(tmp_path / "last"), model)


@pytest.mark.slow
def test_sentence_transformers_write_and_read(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    module = pytest.importorskip("sentence_transformers.models")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertModel(config).save_pretrained(tmp_path / "float")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "float")
    encoder = module.Transformer(str(tmp_path / "float"))
    model = sentence_transformers.SentenceTransformer(modules=[encoder, module.Pooling(64)], device="cpu")
    exact = model.encode(["a b c"])
    quantize_(model, ao_arm.acl_int8_dynamic())
    expected = model.encode(["a b c"])
    assert (expected != exact).any()
    for name, write in {"save": model.save, "by_name": lambda folder: ao_arm.save_pretrained(model, folder)}.items():
        write(str(tmp_path / name))
        back = sentence_transformers.SentenceTransformer(str(tmp_path / name), device="cpu")
        assert sum(is_packed(parameter) for parameter in back.parameters()) >= 12
        assert (back.encode(["a b c"]) == expected).all()
