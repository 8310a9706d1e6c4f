"""The table of kernels in docs/support.md: what is between the markers is replaced, and nothing else."""

import pytest
from support_table import MARKERS, PAGE, replaced, table_in


def test_only_the_table_is_replaced() -> None:
    begin, end = MARKERS
    text = f"| another |\n{begin}\n| old |\n| older |\n{end}\n| table |\n"
    assert replaced(text, ["| new |"]) == f"| another |\n{begin}\n| new |\n{end}\n| table |\n"
    assert replaced(f"{begin}\n{end}\n", ["| new |"]) == f"{begin}\n| new |\n{end}\n"


def test_the_page_has_one_place_for_it() -> None:
    assert "| new |" in replaced(PAGE.read_text(), ["| new |"])
    with pytest.raises(ValueError, match="has 0 places for the table"):
        replaced("", [])


def test_other_output_is_left_out() -> None:
    assert table_in("a warning\n| a |\n| b |\nand | so on |\n") == ["| a |", "| b |"]
