"""How commands end: exit codes, data on standard output, messages on standard error, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from terminal import Terminal, in_terminal

import wustore
from wustore import errors
from wustore.cli import COMMANDS
from wustore.cli._run import exit_code
from wustore.testing import sample


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.FidelityError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.StoreExistsError("x"), 2),
        (errors.StoreNotFoundError("x"), 2),
        (errors.UnknownFormatError("x"), 2),
        (errors.MissingDependencyError("x"), 2),
        (errors.FormatError("x"), 3),
        (errors.VersionError("x"), 3),
        (errors.CorruptError("x"), 3),
        (PermissionError(13, "no"), 3),
        (OSError(28, "full"), 3),
        (MemoryError(), 3),
        (errors.IncompleteError("x"), 4),
    ],
)
def test_exit_code(error, code, run, monkeypatch):
    assert exit_code(error) == code

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("wustore.backends.registry.open_reader", fail)
    found, out, err = run("verify", "x")
    assert found == code
    assert out == ""
    assert err.startswith("wustore: error: ")
    assert len(err.splitlines()) == 1
    assert "Traceback" in run("--debug", "verify", "x")[2]


def test_every_error_class_has_a_code():
    for name in errors.__all__:
        assert exit_code(getattr(errors, name)("x")) in {1, 2, 3, 4}


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["info"], ["diff", "a", "b", "c"], ["convert", "a"], ["info", "--what", "a"], ["--what"]]
)
def test_usage(arguments, run):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert "Usage:" in err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help(command, run):
    code, out, err = run(command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: wustore {command}")
    assert err == ""


def test_overview(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert run("--version")[1] == f"wustore, version {wustore.__version__}\n"


def test_not_an_error_of_ours(monkeypatch, run):
    # A bug must not look like bad input.
    def fail(*arguments, **options):
        raise ZeroDivisionError

    monkeypatch.setattr("wustore.backends.registry.open_reader", fail)
    with pytest.raises(ZeroDivisionError):
        run("info", "x")


@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["verify"],
        ["repack", "--layout", "images"],
        ["stamp", "--x", "1", "--y", "1", "-o", "a.npy"],
        ["finish"],
    ],
)
def test_an_empty_path_is_a_mistake_in_the_command(run, command):
    code, out, err = run(*command, "")
    assert (code, out) == (2, "")
    assert "without a name" in err


SLOW = """
import sys, time
from wustore.backends.memory import MemoryBackend, MemoryReader
from wustore.cli import main
from wustore.testing import sample
from wustore.ops.copy import copy
reader = sample("chunked")
copy(reader, MemoryBackend().create("ram:slow", reader.meta))
real = MemoryReader.image
def slow(self, i, *arguments, **options):
    print("reading", flush=True)
    time.sleep(0.3 if i < 1 else 60)
    return real(self, i, *arguments, **options)
MemoryReader.image = slow
sys.exit(main(["convert", "ram:slow", sys.argv[1], "--workers", "1"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_cleanly(tmp_path, number, code):
    target = tmp_path / "night.zarr"
    command = [sys.executable, "-c", SLOW, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(2):
            assert process.stdout.readline() == "reading\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_module_runs():
    done = subprocess.run([sys.executable, "-m", "wustore", "--version"], capture_output=True, text=True, check=True)
    assert wustore.__version__ in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="pipes are those of POSIX")
def test_reader_of_the_output_goes_away():
    command = [sys.executable, "-m", "wustore", "formats"]
    read, write = os.pipe()
    os.close(read)  # gone before the command begins
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_progress_only_on_a_terminal(tmp_path):
    program = SLOW.replace("0.3 if i < 1 else 60", "0").replace('"--workers", "1"', '"--overwrite"')
    quiet = subprocess.run(
        [sys.executable, "-c", program, "ram:out"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert quiet.stderr == "ram:out: 3 images\n"
    program = program.replace('    print("reading", flush=True)\n', "")
    code, shown, came = in_terminal([sys.executable, "-c", program, "ram:out"], tmp_path)
    assert code == 0
    assert "converting" in came
    assert shown == "ram:out: 3 images"  # the bar is gone


def test_ctrl_c_in_a_terminal(tmp_path):
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", SLOW, str(tmp_path / "out" / "night.zarr")]
    with Terminal(command, tmp_path) as terminal:
        terminal.wait("reading(.|\n)*reading")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "wustore: interrupted" in terminal.screen
        assert "Traceback" not in terminal.output
    assert list((tmp_path / "out").iterdir()) == []


def test_warnings_are_one_line(store, run, monkeypatch):
    import warnings

    from wustore.backends import registry

    real = registry.open_reader

    def warn(*arguments, **options):
        warnings.warn("the step destroys this plane", UserWarning, stacklevel=1)
        return real(*arguments, **options)

    monkeypatch.setattr(registry, "open_reader", warn)
    name = store(sample("simple"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = run("info", name)
    assert code == 0
    assert err == "wustore: warning: the step destroys this plane\n"


@pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX closes the output")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    command = f"exec {sys.executable} -m wustore formats {closed}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-m", "wustore", "formats"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "Free some space" in done.stderr


@pytest.mark.parametrize("command", list(COMMANDS))
def test_common_options(command, run):
    text = run(command, "--help")[1]
    assert all(option in text for option in ("-q, --quiet", "-v, --verbose", "--no-progress"))


def test_quiet_and_verbose(store, run):
    name = store(sample("simple"))
    assert run("diff", name, name, "-q") == (0, "", "")
    assert " s)" not in run("diff", name, name)[2]
    assert run("diff", name, name, "-v")[2].endswith(" s)\n")
    assert run("verify", name, "-q") == (0, "", "")
    assert run("-q", "verify", name) == (0, "", "")  # before the command, too
    assert run("-v", "diff", name, name)[2].endswith(" s)\n")
