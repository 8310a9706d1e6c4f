"""Executes the tutorials' notebooks: in their short mode for the tests, or, with their outputs written back, in full.

`python tests/notebooks.py [NAME.ipynb ...]`, on a quiet machine, as figures are among the outputs.
"""

import os
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDER = CHECKOUT / "tutorials"


def read(name: str) -> Any:
    """A notebook as it is checked in."""
    import nbformat

    return nbformat.read(FOLDER / name, as_version=4)


def execute(name: str, short: bool = True) -> Any:
    """Runs all cells in a fresh process, in the notebook's folder as Jupyter does; any error of a cell is raised."""
    from nbclient import NotebookClient

    environment = {key: value for key, value in os.environ.items() if key != "AO_ARM_KERNEL"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    if short:
        environment["AO_ARM_TUTORIAL_SHORT"] = "1"
    environment["OMP_WAIT_POLICY"] = "passive"  # on a busy machine threads that spin would keep others from working
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(
        read(name),
        timeout=None,
        startup_timeout=24 * 3600,  # there is no way to say never
        kernel_name="python3",
        resources=resources,
        record_timing=False,
    )
    return client.execute(env=environment)


def write(name: str, notebook: Any) -> None:
    """Checks a notebook's outputs in: what a cell printed in one piece, and nothing about this machine's Python."""
    import nbformat

    for cell in notebook.cells:
        pieces = cell.get("outputs", [])
        for piece, after in zip(reversed(pieces[:-1]), reversed(pieces[1:]), strict=True):
            if piece.get("name") == "stdout" == after.get("name"):
                piece.text += after.text
                pieces.remove(after)
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, FOLDER / name)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or sorted(path.name for path in FOLDER.glob("*.ipynb")):
        write(chosen, execute(chosen, short=False))
