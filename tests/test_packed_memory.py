"""The memory that packed weights lie in."""

import re
from pathlib import Path

import pytest
import torch

from ao_arm import _ops


def flags_at(address: int) -> list[str]:
    """What Linux was told of the mapping that holds an address."""
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", mapping)
        if bounds and int(bounds[1], 16) <= address < int(bounds[2], 16):
            return re.findall(r"^VmFlags: (.*)$", mapping, re.MULTILINE)[0].split()
    raise ValueError(f"no mapping holds {address:#x}")


@pytest.mark.x86
@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system gives no huge pages on request"
)
def test_large_packed_weights_ask_for_huge_pages() -> None:
    values = torch.ones(4096, 2048, dtype=torch.int8)
    int4 = _ops.pack_int4(values, torch.ones(4096, 64), None, "")
    for packed in (_ops.pack_int8(values, ""), int4):
        assert "hg" in flags_at(packed.data_ptr() + packed.numel() // 2)
