"""The table of architectures in docs/architectures.md is what tiny models of them give."""

from functools import cache

import architecture_table as made
import pytest
from architectures import ARCHITECTURES, TRANSFORMERS

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.x86,
    pytest.mark.skipif(not transformers.__version__.startswith("5."), reason="the page is about transformers 5"),
]

#: How far figures may be from the page's; rounding and torch's versions move them by less.
TOLERANCE_DB = 1.5
SCHEMES = len(made.SCHEMES)


@cache
def page() -> dict[str, tuple[str, ...]]:
    return made.read(made.PAGE.read_text())


def column(cells: tuple[str, ...], scheme: int, name: str) -> str:
    return cells[1 + scheme * len(made.COLUMNS) + made.COLUMNS.index(name)]


def near(found: str, expected: str) -> bool:
    """Whether both are the same word, or figures that are near each other."""
    try:
        return abs(float(found) - float(expected)) <= TOLERANCE_DB
    except ValueError:
        return found == expected


def test_the_page_has_all_architectures() -> None:
    assert list(page()) == list(ARCHITECTURES)
    assert len(TRANSFORMERS) == 21
    assert all(len(cells) == 1 + SCHEMES * len(made.COLUMNS) for cells in page().values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shares_and_eager_figures(name: str) -> None:
    _, *found = made.row(name, ARCHITECTURES[name], ("eager",))
    assert found[0] == page()[name][0]
    for scheme in range(SCHEMES):
        expected = column(page()[name], scheme, "eager")
        assert near(column(tuple(found), scheme, "eager"), expected), f"{found} instead of {expected}"


@pytest.mark.parametrize("name", ["GPT-2", "T5", "Llama", "Mixtral"])
def test_generated_tokens(name: str) -> None:
    _, *found = made.row(name, ARCHITECTURES[name], ("generated",))
    for scheme in range(SCHEMES):
        assert column(tuple(found), scheme, "generated") == column(page()[name], scheme, "generated")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["`nn.TransformerEncoderLayer`"])
def test_a_compiled_figure(name: str) -> None:
    """The others are of the command, which takes minutes."""
    _, *found = made.row(name, ARCHITECTURES[name], ("compiled",))
    for scheme in range(SCHEMES):
        assert near(column(tuple(found), scheme, "compiled"), column(page()[name], scheme, "compiled"))


def test_compiled_figures_are_those_of_eager() -> None:
    """Of the page: torch.compile gives the numbers of eager wherever it was measured."""
    for name, cells in page().items():
        for scheme in range(SCHEMES):
            compiled = column(cells, scheme, "compiled")
            assert compiled == made.NONE or near(compiled, column(cells, scheme, "eager")), name
