"""The code of README and docs: its blocks, and the commands in them."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page):
    """The fenced blocks of a page as (language, text)."""
    return re.findall(r"^```([\w{}-]*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(text):
    """The commands of a console block as (command, exit code, expected output)."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not parts[0].strip(), "output without a command"
    for part in parts[1:]:
        command, _, output = part.partition("\n")
        code = re.search(r"# exit code (\d+)$", command)
        yield command, int(code[1]) if code else 0, output.strip()


def is_like(output, expected):
    """Whether an output is the one that a page shows, in which ``...`` is anything."""
    pattern = re.sub(r"([\[?])", r"[\1]", expected).replace("...", "*")
    return not expected or fnmatchcase(output.strip(), pattern)
