"""Writes the table of architectures in docs/architectures.md: `python architecture_table.py`, which takes minutes.

Names of architectures as arguments measure these alone. What it compiles is measured by the command alone; the rest is
what a test measures again.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from architectures import ARCHITECTURES, BATCH, Architecture, Tiny, outputs_of, tiny
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig

import ao_arm
from ao_arm import quantizable
from ao_arm.experts import is_packed
from ao_arm.sqnr import sqnr_db

sys.path.append(str(Path(__file__).with_name("arm64")))
from support_table import CHECKOUT, replaced

PAGE = CHECKOUT / "docs/architectures.md"
MARKERS = "<!-- architectures: begin, written by tests/architecture_table.py -->", "<!-- architectures: end -->"
SCHEMES: dict[str, Callable[[], AOBaseConfig]] = {"int8": ao_arm.acl_int8_dynamic, "4 bits": ao_arm.acl_int4_grouped}
COLUMNS = ("eager", "compiled", "generated")
HEADER = ("", "quantized", *(f"{scheme}, {column}" for scheme in SCHEMES for column in COLUMNS))
NEW_TOKENS = 8
#: Of what does not apply, and of an output that quantizing does not change.
NONE, EQUAL = "-", "equal"


def quantized(model: nn.Module, config: AOBaseConfig, left: str = "") -> nn.Module:
    """A quantized copy, but for layers whose names end in this: the one place that says how."""
    made = copy.deepcopy(model)
    ao_arm.quantize_(made, config, lambda layer, name: quantizable(layer, name) and not (left and name.endswith(left)))
    return made


def floats_left(model: nn.Module) -> int:
    """How many values of parameters, those of embeddings apart, are not quantized."""
    return sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if not is_packed(parameter)
    )


def share(model: nn.Module, made: nn.Module) -> str:
    """How many of the values of parameters are quantized."""
    before = floats_left(model)
    return f"{1 - floats_left(made) / before:.1%}" if before else NONE


def decibels(exact: Tensor, found: Tensor) -> str:
    """The SQNR, or that the two are equal."""
    return EQUAL if torch.equal(exact, found) else f"{sqnr_db(exact, found):.1f}"


def eager(small: Tiny, made: nn.Module) -> str:
    return decibels(small.outputs, outputs_of(made, small.inputs))


def compiled(small: Tiny, made: nn.Module) -> str:
    torch._dynamo.reset()
    return decibels(small.outputs, outputs_of(torch.compile(made, dynamic=False), small.inputs))


@torch.no_grad()
def generated(small: Tiny, made: nn.Module, begins_with: str) -> str:
    """How many of the tokens that the quantized model generates with a cache it also generates without."""
    if not begins_with:
        return NONE
    tokens = [
        made.generate(  # type: ignore[operator]
            small.inputs[begins_with],
            max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, use_cache=use_cache,
        )[:, -NEW_TOKENS:]
        for use_cache in (True, False)
    ]  # fmt: skip
    return f"{int((tokens[0] == tokens[1]).sum())} of {BATCH * NEW_TOKENS}"


def tried(measure: Callable[[], str]) -> str:
    """The figure, or the name of the error that is in its place."""
    try:
        return measure()
    except Exception as error:  # whatever a model's own code raises
        return type(error).__name__


def row(name: str, architecture: Architecture, columns: Iterable[str] = COLUMNS) -> tuple[str, ...]:
    """An architecture's line; of the columns that are not asked for, nothing."""
    small = tiny(architecture)
    cells, quantized_share = [], NONE
    for config in SCHEMES.values():
        made = quantized(small.model, config(), architecture.left)
        quantized_share = share(small.model, made)
        unchanged = floats_left(made) == floats_left(small.model)
        for column in COLUMNS:
            if column not in columns:
                cells.append("")
            elif column == "eager":
                cells.append(tried(lambda made=made: eager(small, made)))  # type: ignore[misc]
            elif unchanged:
                cells.append(NONE)
            elif column == "compiled":
                cells.append(tried(lambda made=made: compiled(small, made)))  # type: ignore[misc]
            else:
                cells.append(tried(lambda made=made: generated(small, made, architecture.generates)))  # type: ignore[misc]
    return name, quantized_share, *cells


def lines(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """In Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (HEADER, ("---",) * len(HEADER), *rows)]


def read(page: str) -> dict[str, tuple[str, ...]]:
    """The cells of each line of the page's table, by the architecture."""
    text = page.partition(MARKERS[0])[2].partition(MARKERS[1])[0]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.split("\n") if line[:1] == "|"]
    return {name: tuple(rest) for name, *rest in cells[2:]}


def main(names: Sequence[str]) -> None:
    """Measures these lines, or all; the others stay as the page has them."""
    page = PAGE.read_text()
    known = {name: (name, *cells) for name, cells in read(page).items()}
    for name, architecture in ARCHITECTURES.items():
        if not names or name in names:
            known[name] = row(name, architecture)
            print(*known[name], sep=" | ", file=sys.stderr, flush=True)
    PAGE.write_text(replaced(page, lines(known[name] for name in ARCHITECTURES), MARKERS))


if __name__ == "__main__":
    main(sys.argv[1:])
