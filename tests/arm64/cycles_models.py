"""Whole encoders: the modelled cycles of a layer times the number of layers, beside torch's; a table and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from cycles_figures import TARGETS, Row
from cycles_tables import digits, in_columns

#: How many layers each model has.
MODELS = {"bert-base": 12, "bert-large": 24, "roberta-base": 12, "distilbert": 6}
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
# Floats take long to emulate, so that those of longer contexts are modelled only where they are asked for.
FP32_LENGTHS = LENGTHS[:4]
WHOSE = {
    "fp32": "fp32",
    "torch": "torch quantize_dynamic, per tensor (direct ACL)",
    "ours": "ao_arm, per token x per channel",
}
PARTS = {"linear": "linear layers", "attention": "attention", "normalisation": "normalisation and gelu"}

MODEL_CAVEAT = """\
An encoder of that configuration with random weights, a batch of one: the figures of one layer times {layers}. Parts ran
alone with the same inputs; what they leave of a layer is Python, other ops and what transformers does between them.
Embeddings and what follows the encoder are left out."""


class ModelRow(NamedTuple):
    """What a part of all layers takes, in cycles of the busiest thread."""

    whose: str
    part: str
    length: int
    cycles: int


def model_rows(model: str, rows: Sequence[Row]) -> list[ModelRow]:
    """The rows of regions that cycles_model_guest.py labelled."""
    return [
        ModelRow(whose, part, int(length), MODELS[model] * row.busiest)
        for row in rows
        for whose, part, length in [row.label.split()]
    ]


def speedups(rows: Sequence[ModelRow], part: str) -> dict[int, float]:
    """How many times as fast as torch's a part of ours is, by length."""
    cycles = {(row.whose, row.length): row.cycles for row in rows if row.part == part}
    return {length: of / cycles["ours", length] for (whose, length), of in cycles.items() if whose == "torch"}


def lengths_of(rows: Sequence[ModelRow]) -> tuple[int, ...]:
    """The lengths of contexts among the rows."""
    return tuple(dict.fromkeys(row.length for row in rows))


def write_encoders(file: Path, cpu: str, threads: int, found: Mapping[str, Sequence[ModelRow]]) -> None:
    """Write the rows of models to a file, for `read_encoders`."""
    plain = {"cpu": cpu, "threads": threads, "models": {model: list(rows) for model, rows in found.items()}}
    file.write_text(json.dumps(plain, indent=1) + "\n")


def read_encoders(files: Sequence[Path], models: Sequence[str]) -> tuple[str, int, dict[str, list[ModelRow]]]:
    """The core, the number of threads and the rows of these models in files that `write_encoders` wrote.

    Raises:
        ValueError: if a file holds anything else, if they are of different cores or numbers of threads, or if one of
            the models is in none of them.
    """
    found: dict[str, list[ModelRow]] = {}
    setups = set()
    for file in files:
        try:
            figures = json.loads(file.read_text())
            setups.add((str(figures["cpu"]), int(figures["threads"])))
            of_file = {model: [ModelRow(*row) for row in rows] for model, rows in figures["models"].items()}
            known = figures["cpu"] in TARGETS and of_file.keys() <= MODELS.keys()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is no file that --model --json wrote: {error!r}") from None
        if not known:
            raise ValueError(f"{file} names a core or models that are not known here")
        found.update(of_file)
    if len(setups) != 1:
        raise ValueError(f"the files are of different cores or numbers of threads: {sorted(setups)}")
    if missing := [model for model in models if model not in found]:
        raise ValueError(f"the files have no figures of {', '.join(missing)}; they have those of {', '.join(found)}")
    ((cpu, threads),) = setups
    return cpu, threads, {model: found[model] for model in models}


def model_table(model: str, rows: Sequence[ModelRow], cpu: str, threads: int) -> str:
    """Cycles of the encoder and its linear layers, the ratios with their means, and what the rest of ours is."""
    lengths = lengths_of(rows)
    cycles = {(row.whose, row.part, row.length): row.cycles for row in rows}

    def cells(whose: str, part: str) -> list[str]:
        values = (cycles.get((whose, part, length)) for length in lengths)
        return ["-" if value is None else digits(value) for value in values]

    lines = [(f"thousand cycles, {model}, {cpu}, threads: {threads}; tokens", *map(str, lengths), "mean")]
    for part, title in (("whole", "encoder"), ("linear", PARTS["linear"])):
        for whose, name in WHOSE.items():
            lines.append((f"{title}: {name}", *cells(whose, part), ""))
        ratios = speedups(rows, part)
        lines.append(
            (f"{title}: times as fast", *(f"{ratios[of]:.2f}" for of in lengths), f"{mean(ratios.values()):.2f}")
        )
    whole = [cycles["ours", "whole", length] for length in lengths]
    shares = {
        name: [cycles["ours" if part == "linear" else "all", part, length] for length in lengths]
        for part, name in PARTS.items()
    }
    rest = [total - sum(of) for total, *of in zip(whole, *shares.values(), strict=True)]
    for name, values in {**shares, "Python and what is left": rest}.items():
        parts = [value / total for value, total in zip(values, whole, strict=True)]
        lines.append((f"of ours: {name}", *(f"{part:.0%}" for part in parts), f"{mean(parts):.0%}"))
    return in_columns(lines)


def draw_models(found: Mapping[str, Sequence[ModelRow]], cpu: str, threads: int, file: Path) -> None:
    """Write a picture of how many times as fast as torch's each model is, over the length of its context.

    Raises:
        ValueError: if matplotlib does not know the file's suffix.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axis = figure.add_subplot()
    for number, (model, rows) in enumerate(found.items()):
        for part, title, style in (("linear", "linear layers", "solid"), ("whole", "encoder", "dashed")):
            ratios = speedups(rows, part)
            label = f"{model}, {title} (mean {mean(ratios.values()):.2f})"
            colour = colormaps["tab10"](number)
            axis.plot(list(ratios), list(ratios.values()), label=label, color=colour, linestyle=style, marker="o")
    lengths = lengths_of([row for rows in found.values() for row in rows])
    axis.set(xscale="log", xlabel="tokens", ylabel="times as fast as torch's direct ACL", ylim=(0, None))
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.minorticks_off()
    axis.axhline(1, color="black", linewidth=0.8, linestyle="dotted")
    axis.grid(True, alpha=0.3)
    axis.legend(fontsize="small")
    figure.suptitle(
        f"int8 dynamic encoders on {cpu}, {threads} threads: modelled cycles, nothing measured",
        fontsize="medium",
    )
    figure.savefig(file, dpi=120)
