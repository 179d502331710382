"""Completion in live shells: the script of ``wustore completion`` is read, keys are pressed, and the line changes."""

from __future__ import annotations

import shutil

import pytest
from terminal import Terminal

START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
READ = {
    "bash": 'eval "$(wustore completion bash)"',
    "zsh": 'autoload -Uz compinit && compinit -u -D && eval "$(wustore completion zsh)"',
    "fish": "wustore completion fish | source",
}
CLEAR = "\x15"  # Ctrl-U


@pytest.mark.slow
@pytest.mark.parametrize("shell", list(START))
def test_keys_in_a_live_shell(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "night_of_october.zarr").mkdir()
    with Terminal(START[shell], tmp_path, columns=120, environment={"PS1": "> ", "DISPLAY": ""}) as terminal:
        terminal.type(f"{READ[shell]}; echo rea''dy\r")
        terminal.wait(r"\nready|\rready|ready\r")
        for typed, completed in (
            ("wustore ver", "ify"),
            ("wustore verify --conti", "nue-on-error"),
            ("wustore info nig", "ht_of_october.zarr"),
            ("wustore completion fi", "sh"),
        ):
            terminal.type(typed + "\t")
            terminal.wait(completed)
            terminal.type(CLEAR)
        terminal.type("exit\r")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.output
