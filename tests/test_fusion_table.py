"""The table of what graph passes fuse in docs/support.md is what their tests go over."""

import re

import fusion_table
import pytest

pytestmark = pytest.mark.x86


def test_the_page_has_the_table_that_the_tests_hold() -> None:
    begin, end = fusion_table.MARKERS
    (found,) = re.findall(f"{re.escape(begin)}\n(.*?){re.escape(end)}", fusion_table.PAGE.read_text(), re.DOTALL)
    assert found.splitlines() == fusion_table.table(), "run tests/fusion_table.py"


def test_each_row_is_one_of_its_own() -> None:
    rows = [(source, pattern) for source, pattern, _ in fusion_table.rows()]
    assert len(rows) == len(set(rows)) > 15
