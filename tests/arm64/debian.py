"""Downloads Debian packages of any suite and architecture with an apt of our own, and unpacks them: no root rights."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apt_sources import debian_source
from cache import cache_folder
from commands import Unavailable, call

# The machine's hooks act on the machine's own apt folders, which are not ours to touch.
HOOKS = (
    "APT::Update::Pre-Invoke",
    "APT::Update::Post-Invoke",
    "APT::Update::Post-Invoke-Success",
    "DPkg::Pre-Invoke",
    "DPkg::Post-Invoke",
    "DPkg::Pre-Install-Pkgs",
)


def codename() -> str:
    """The code name of the Debian release that this machine runs."""
    fields = {}
    release = Path("/etc/os-release")
    for line in release.read_text().splitlines() if release.exists() else []:
        name, _, value = line.partition("=")
        fields[name] = value.strip().strip("\"'")
    if fields.get("ID") != "debian" or not fields.get("VERSION_CODENAME"):
        raise Unavailable("this machine does not run a release of Debian")
    return fields["VERSION_CODENAME"]


def _configuration(folder: Path, architecture: str) -> str:
    """An apt configuration whose every folder is below `folder`; proxies and passwords stay the machine's."""
    settings = {
        "Dir::Etc::sourcelist": folder / "debian.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        # An empty file in our folder and not /dev/null: apt locks the folder that this file is in.
        "Dir::State": folder / "state",
        "Dir::State::lists": folder / "state" / "lists",
        "Dir::State::status": folder / "state" / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Cache::archives": folder / "cache" / "archives",
        "Dir::Log": folder / "log",
        "APT::Architecture": architecture,
        "APT::Install-Recommends": "false",
        "APT::Install-Suggests": "false",
        "APT::Keep-Downloaded-Packages": "true",
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        # apt started by root becomes the user _apt, who may not write into a cache below /root.
        "APT::Sandbox::User": "root",
    }
    cleared = "".join(f"#clear {name};\n" for name in (*HOOKS, "APT::Architectures", "Acquire::Languages"))
    return cleared + "".join(f'{name} "{value}";\n' for name, value in settings.items())


@contextmanager
def _apt(suite: str, architecture: str, kind: str = "deb") -> Iterator[tuple[Path, Callable[..., None]]]:
    """A folder of apt's own with the lists of a suite, and a function that runs apt-get in it."""
    stanza = debian_source(codename()).stanza(suite).replace("Types: deb\n", f"Types: {kind}\n")
    with tempfile.TemporaryDirectory(prefix=".apt-", dir=cache_folder()) as name:
        folder = Path(name)
        for made in ("state/lists/partial", "cache/archives/partial", "log"):
            (folder / made).mkdir(parents=True)
        (folder / "state" / "status").touch()
        (folder / "debian.sources").write_text(stanza)
        (folder / "apt.conf").write_text(_configuration(folder, architecture))
        env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}

        def run(*arguments: str) -> None:
            call(("env", "-C", folder, "apt-get", "-q", "-y", "-c", folder / "apt.conf", *arguments), env)

        run("update")
        yield folder, run


def unpack(
    packages: Sequence[str],
    *,
    suite: str,
    architecture: str,
    into: Path,
    wanted: Callable[[str], bool] = lambda package: True,
) -> None:
    """Unpack `packages`, and those of their dependencies that are `wanted`, into a folder."""
    with _apt(suite, architecture) as (folder, run):
        run("install", "--download-only", *packages)
        for archive in sorted((folder / "cache" / "archives").glob("*.deb")):
            if wanted(archive.name.partition("_")[0]):
                call(("dpkg-deb", "-x", archive, into))


def unpack_source(package: str, *, suite: str, into: Path) -> Path:
    """Unpack a package's upstream source, without Debian's patches; returns the folder that it consists of."""
    with _apt(suite, "amd64", "deb-src") as (folder, run):
        run("source", "--download-only", package)
        for archive in folder.glob("*.orig.tar.??"):
            shutil.unpack_archive(archive, into)
    trees = list(into.iterdir())
    if len(trees) != 1:
        raise Unavailable(f"the source package {package} of {suite} holds {len(trees)} folders, not one")
    return trees[0]
