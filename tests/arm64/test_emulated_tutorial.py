"""The tutorial that takes a checkpoint from x86 to Arm."""

import notebooks
import pytest
from machine import Machine

pytest.importorskip("nbclient", reason="pip install 'ao_arm[tutorials]'")


def test_a_checkpoint_goes_from_x86_to_arm(machine: Machine) -> None:
    notebooks.execute("5_quantize_here_run_on_arm.ipynb")
