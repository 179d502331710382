"""A user's session in a terminal: README, tutorial and every help text, as they are printed."""

from __future__ import annotations

import re
import sys

import pytest
from pages import ROOT, blocks, commands, is_like
from terminal import Screen, in_terminal

from wustore.cli import COMMANDS

WIDE = 500
"""Columns: lines that a page shows are compared, so they must not be wrapped, wherever the files are."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_a_page_in_a_terminal(name, tmp_path):
    n_bars = 0
    for language, text in blocks(ROOT / name):
        if language == "python":
            code, shown, _ = in_terminal([sys.executable, "-c", text], tmp_path)
            assert code == 0, f"{text}\n{shown}"
        elif language == "console":
            for command, expected_code, expected in commands(text):
                code, shown, came = in_terminal(["bash", "-c", command], tmp_path, columns=WIDE)
                assert code == expected_code, f"{command}\n{shown}"
                assert "Traceback" not in shown
                # What a command says of itself comes after its data, in one line.
                lines = shown.splitlines()
                assert is_like(shown, expected) or is_like("\n".join(lines[:-1]), expected), f"{command}\n{shown}"
                n_bars += "image/s" in came
                assert "image/s" not in shown, f"{command} leaves its bar:\n{shown}"
    assert n_bars >= 2


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_fits_a_terminal(command, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: wustore {command} ")
    assert [line for line in out.splitlines() if len(line) > 80] == []


@pytest.mark.slow
def test_every_help_in_a_terminal(tmp_path):
    for words in [[], *([command] for command in COMMANDS)]:
        code, shown, came = in_terminal(["wustore", *words, "--help"], tmp_path)
        assert code == 0, words
        assert shown.startswith(" ".join(["Usage: wustore", *words]))
        assert shown == came.replace("\r\n", "\n").strip("\n"), "a line is wider than the terminal"
        assert not re.search(r"Traceback|\x1b", came)


@pytest.mark.slow
def test_what_is_not_a_table_fits_a_terminal(tmp_path):
    for words in (["demo", "--keep", "demo"], ["formats"], ["info", "demo/night.zarr"], ["doctor"]):
        code, shown, came = in_terminal(["wustore", *words], tmp_path)
        assert code == 0
        plain = re.sub(r"\x1b\[[\d;]*m", "", came).replace("\r\n", "\n").strip("\n")
        lines = [line for line in plain.splitlines() if str(tmp_path) not in line]  # a path is not broken
        assert lines
        assert set(lines) <= set(shown.splitlines()), "a line is wider than the terminal"


def test_the_screen_of_the_tests():
    # What the other tests rest on.
    assert Screen(80).feed("a 50%\ra 100%\r      \rdone\r\n").text == "done"
    assert Screen(4).feed("abcdef\r\n").text == "abcd\nef"
    assert Screen(80).feed("one\r\ntwo\x1b[A\rONE\x1b[K\x1b[1mx").text == "ONEx\ntwo"
