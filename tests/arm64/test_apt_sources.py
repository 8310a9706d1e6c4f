"""The Debian mirror is found in both formats of apt's configuration."""

from pathlib import Path

import pytest
from apt_sources import Source, debian_source, parse_list, parse_sources
from commands import Unavailable

LIST = """
# deb http://commented.example/debian bookworm main
deb http://one.example/debian bookworm main contrib # a remark
deb [arch=amd64,arm64 signed-by=/keys/debian-archive-keyring.gpg] http://two.example/debian/ bookworm main
deb-src http://source.example/debian bookworm main
deb cdrom:[Debian GNU/Linux 12 _Bookworm_ - Official]/ bookworm main
"""

SOURCES = """\
# The archive
Types: deb deb-src
# an older snapshot stood here
URIs: http://one.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no
 \t
Types: deb
URIs: http://inline.example/debian http://second.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 bm90IGEga2V5
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""


def test_one_line_format() -> None:
    assert parse_list(LIST) == [
        Source("http://one.example/debian", ("bookworm",), ("main", "contrib")),
        Source("http://two.example/debian/", ("bookworm",), ("main",), "/keys/debian-archive-keyring.gpg"),
    ]


def test_deb822_format() -> None:
    key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n bm90IGEga2V5\n -----END PGP PUBLIC KEY BLOCK-----"
    assert parse_sources(SOURCES) == [
        Source(
            "http://one.example/debian",
            ("bookworm", "bookworm-updates"),
            ("main",),
            "/keys/debian-archive-keyring.gpg",
        ),
        Source("http://inline.example/debian", ("bookworm",), ("main",), key),
        Source("http://second.example/debian", ("bookworm",), ("main",), key),
    ]


def test_a_stanza_is_read_back() -> None:
    (source, *_) = parse_sources(SOURCES)
    (again,) = parse_sources(source.stanza("trixie"))
    assert again == Source(source.uri, ("trixie",), ("main",), source.signed_by)


@pytest.mark.parametrize(
    "line",
    [
        "deb http://debian.example/debian-security bookworm main",
        "deb http://debian.example/debian bookworm-updates main",
        "deb http://debian.example/debian buster main",
        "deb http://vendor.example/linux/debian bookworm stable",
        "deb http://vendor.example/apt bookworm main",
    ],
)
def test_other_archives_are_not_taken(tmp_path: Path, line: str) -> None:
    (tmp_path / "sources.list").write_text(line + "\n")
    with pytest.raises(Unavailable, match="no Debian mirror for bookworm"):
        debian_source("bookworm", tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "http://mirror.example/debian",
        "mirror+file:/etc/apt/mirrors/debian.list",
        "http://snapshot.example/archive/debian/20250520T000000Z/",
        "https://proxy.example/repository/debian-proxy/",
    ],
)
def test_mirrors_are_taken(tmp_path: Path, uri: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    text = f"Types: deb\nURIs: {uri}\nSuites: bookworm\nComponents: main\n"
    (tmp_path / "sources.list.d" / "debian.sources").write_text(text)
    assert debian_source("bookworm", tmp_path).uri == uri


def test_the_mirror_with_debians_key_comes_first(tmp_path: Path) -> None:
    vendor = "deb [signed-by=/keys/vendor.gpg] http://vendor.example/debian/12/prod bookworm main\n"
    debian = "deb [signed-by=/keys/debian-archive-keyring.gpg] http://mirror.example/debian bookworm main\n"
    (tmp_path / "sources.list").write_text(vendor + debian)
    assert debian_source("bookworm", tmp_path).uri == "http://mirror.example/debian"
