"""The real text by which a language model is judged: one that comes with the system, with Python, or a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import DemoError

#: Debian and what is made of it have it.
LICENCE = Path("/usr/share/common-licenses/GPL-3")
#: Of the chapters of Python's documentation that come with it, those that are prose.
_TOPICS = ("exceptions", "naming", "objects", "execmodel", "import", "class")


@dataclass(frozen=True)
class Text:
    """A text and what it is called."""

    name: str
    content: str


def licence_or_manual() -> Text:
    """The GNU General Public License, or, where the system does not have it, a part of Python's manual."""
    return read(LICENCE) if LICENCE.is_file() else manual()


def read(file: Path) -> Text:
    """A file in UTF-8."""
    return Text(file.name, file.read_text(encoding="utf-8"))


def manual() -> Text:
    """Chapters of Python's manual, from the standard library.

    Raises:
        DemoError: if Python was installed without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DemoError(
            f"there is no text to measure a perplexity with: neither {LICENCE} nor Python's manual. Give one: --text "
            "FILE"
        ) from None
    chapters = [str(topics[name]) for name in _TOPICS if name in topics]
    return Text("Python's manual", "\n".join(chapters))
