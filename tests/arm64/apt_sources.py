"""Finds the Debian mirror that this machine's apt is configured with."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commands import Unavailable

# Entries that follow a release name instead of a code name.
ROLLING = frozenset({"stable", "oldstable", "testing", "unstable", "sid"})
KEYRING = "debian-archive-keyring"
DEFAULT_KEYRING = f"/usr/share/keyrings/{KEYRING}.gpg"


@dataclass(frozen=True)
class Source:
    """One entry of apt's configuration: where packages are and how they are signed."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    trusted: str = ""

    def stanza(self, suite: str) -> str:
        """This source in deb822 form, for another suite."""
        lines = ["Types: deb", f"URIs: {self.uri}", f"Suites: {suite}", "Components: main"]
        signed_by = self.signed_by or (DEFAULT_KEYRING if Path(DEFAULT_KEYRING).exists() else "")
        if signed_by:
            lines.append(f"Signed-By: {signed_by}")
        if self.trusted:
            lines.append(f"Trusted: {self.trusted}")
        return "\n".join(lines) + "\n"


def parse_list(text: str) -> list[Source]:
    """The `deb` entries of a one-line `.list` file."""
    found = []
    for raw in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(.*)", raw.split("#")[0])
        if not match:
            continue
        options = dict(re.findall(r"([\w-]+)\s*\+?=\s*(\S+)", match[1] or ""))
        # `deb cdrom:[a label with spaces]/ suite` is of no use here, and does not split into words.
        words = [] if match[2].startswith("cdrom:") else match[2].split()
        if len(words) >= 2:
            signed_by = options.get("signed-by", "").replace(",", " ")
            found.append(Source(words[0], (words[1],), tuple(words[2:]), signed_by, options.get("trusted", "")))
    return found


def parse_sources(text: str) -> list[Source]:
    """The enabled `deb` entries of a deb822 `.sources` file."""
    found = []
    for fields in _stanzas(text):
        enabled = fields.get("enabled", "yes").lower() not in {"no", "false", "off", "0", "without", "disable"}
        if enabled and "deb" in fields.get("types", "").split():
            suites, components = fields.get("suites", "").split(), fields.get("components", "").split()
            for uri in fields.get("uris", "").split():
                signing = fields.get("signed-by", ""), fields.get("trusted", "")
                found.append(Source(uri, tuple(suites), tuple(components), *signing))
    return found


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """The stanzas of a deb822 file; a continued value keeps its lines, as an inline key needs them."""
    # A comment may stand between two fields, so it must be gone before blank lines separate the stanzas.
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith("#")]
    for block in re.split(r"\n{2,}", "\n".join(lines)):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] = fields.get(name, "") + "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields:
            yield fields


def _is_debian(source: Source, codename: str) -> bool:
    """Whether a source is the Debian archive itself and not a vendor's repository or a side archive."""
    folders = re.split(r"[/:]+", source.uri.rstrip("/"))[1:]
    archive = [folder for folder in folders if folder.startswith("debian")]
    side = any(folder.startswith(("debian-security", "debian-debug", "debian-ports")) for folder in archive)
    suite = any(name == codename or name in ROLLING for name in source.suites)
    return bool(archive) and not side and suite and "main" in source.components


def debian_source(codename: str, apt: Path = Path("/etc/apt")) -> Source:
    """The Debian mirror among the sources below `apt`."""
    parts = sorted((apt / "sources.list.d").glob("*")) if (apt / "sources.list.d").is_dir() else []
    found: list[Source] = []
    for path in [apt / "sources.list", *parts]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(errors="replace")
            found += parse_list(text) if path.suffix == ".list" else parse_sources(text)
    mirrors = [source for source in found if _is_debian(source, codename)]
    if not mirrors:
        raise Unavailable(f"apt is configured with no Debian mirror for {codename}")
    # Vendors name their folders after Debian too, but only Debian's own archive has Debian's key.
    return next((mirror for mirror in mirrors if KEYRING in mirror.signed_by), mirrors[0])
