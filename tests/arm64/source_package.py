"""Downloads the source of a Debian package, as debian.py does binary packages."""

import os
import shutil
import tempfile
from pathlib import Path

from apt_sources import debian_source
from cache import cache_folder
from commands import Unavailable, call
from debian import _configuration, codename


def unpack_source(package: str, *, suite: str, into: Path) -> Path:
    """Unpack a package's upstream source, without Debian's patches; returns the folder that it consists of."""
    stanza = debian_source(codename()).stanza(suite).replace("Types: deb\n", "Types: deb-src\n")
    with tempfile.TemporaryDirectory(prefix=".apt-", dir=cache_folder()) as name:
        folder = Path(name)
        for made in ("state/lists/partial", "cache/archives/partial", "log"):
            (folder / made).mkdir(parents=True)
        (folder / "state" / "status").touch()
        (folder / "debian.sources").write_text(stanza)
        (folder / "apt.conf").write_text(_configuration(folder, "amd64"))
        apt = ("apt-get", "-q", "-c", folder / "apt.conf")
        env = {**os.environ, "LC_ALL": "C"}
        call((*apt, "update"), env)
        call(("env", "-C", folder, *apt, "source", "--download-only", package), env)
        for archive in folder.glob("*.orig.tar.*"):
            shutil.unpack_archive(archive, into)
    trees = list(into.iterdir())
    if len(trees) != 1:
        raise Unavailable(f"the source package {package} of {suite} holds {len(trees)} folders, not one")
    return trees[0]
