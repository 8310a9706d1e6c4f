"""Executes the tutorials' notebooks in their short mode."""

import os
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDER = CHECKOUT / "tutorials"


def read(name: str) -> Any:
    """A notebook as it is checked in."""
    import nbformat

    return nbformat.read(FOLDER / name, as_version=4)


def execute(name: str) -> None:
    """Runs all cells in a fresh process, in the notebook's folder as Jupyter does; any error of a cell is raised."""
    from nbclient import NotebookClient

    environment = {key: value for key, value in os.environ.items() if key != "AO_ARM_KERNEL"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    environment["AO_ARM_TUTORIAL_SHORT"] = "1"
    environment["OMP_WAIT_POLICY"] = "passive"  # on a busy machine threads that spin would keep others from working
    client = NotebookClient(
        read(name), timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env=environment)
