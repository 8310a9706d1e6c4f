"""Wheels are unzipped as an installer would."""

import os
import zipfile
from pathlib import Path

from wheels import unzip


def test_unzip(tmp_path: Path) -> None:
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/__init__.py", "")
        archive.writestr("toy-1.0.dist-info/METADATA", "Name: toy")
        archive.writestr("toy-1.0.data/purelib/more/module.py", "")
        archive.writestr("toy-1.0.data/scripts/toy", "")
        program = zipfile.ZipInfo("toy/program")
        program.external_attr = 0o755 << 16
        archive.writestr(program, "")
    site = tmp_path / "site"
    unzip(wheel, site)
    files = sorted(str(path.relative_to(site)) for path in site.rglob("*") if path.is_file())
    assert files == ["more/module.py", "toy-1.0.dist-info/METADATA", "toy/__init__.py", "toy/program"]
    assert os.access(site / "toy/program", os.X_OK)
    assert not os.access(site / "toy/__init__.py", os.X_OK)
