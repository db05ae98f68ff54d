"""Colors on a terminal, unless the user wants none (https://no-color.org)."""

import os
import sys


def is_wanted() -> bool:
    """Whether what goes to standard output may be colored."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, code: str) -> str:
    """``text`` in the color of an ANSI ``code``."""
    return f"\033[{code}m{text}\033[0m"
