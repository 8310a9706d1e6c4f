"""Why the demo cannot go on."""

from __future__ import annotations


class DemoError(RuntimeError):
    """The message says what is wrong and what to do; the command line ends with it, in one line."""
