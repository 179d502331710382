"""The command line: exit codes, data on standard output, messages on standard error, clean ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

import wustore
from wustore import errors
from wustore.backends.memory import MemoryBackend, MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.cli import COMMANDS, main
from wustore.cli._run import exit_code
from wustore.format.planes import plane_checksum
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.testing import sample


@pytest.fixture
def store():
    """Function that puts a sample into memory and returns its name."""
    names = []

    def put(reader):
        name = f"ram:{uuid.uuid4().hex}"
        copy(reader, MemoryBackend().create(name, reader.meta))
        names.append(name)
        return name

    yield put
    for name in names:
        MemoryBackend().remove(name)


@pytest.fixture
def run(capsys):
    """Function that runs a command in this process and returns (exit code, standard output, standard error)."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# --- exit codes -------------------------------------------------------------------------------------


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
    "arguments", [["nothing"], ["info"], ["info", "a", "b"], ["convert", "a"], ["info", "--what", "a"], ["--what"]]
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


# --- info -------------------------------------------------------------------------------------------


def test_info_json(store, run):
    meta = sample("rich").meta
    code, out, err = run("info", store(sample("rich")), "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["format"] == "memory"
    assert found["complete"] is True
    assert found["n_images"] == 4
    assert found["image_shape"] == [11, 13]
    assert found["psf_shape"] == {"smallest": [3, 3], "largest": [9, 9]}
    assert found["times"] == {"first": meta.times.min(), "last": meta.times.max(), "missing": 0}
    assert found["wcs"] is True
    assert found["observatory"] == list(meta.observatory.geodetic)
    assert found["configuration"]["parameters"] == len(meta.configuration)
    assert found["n_constituents"] == 7
    assert list(found["columns"]) == [column.name for column in meta.constituents.columns]
    assert found["layers"]["science"]["dtype"] == "float32"
    assert found["layers"]["science"]["bytes_in_memory"] == 4 * 11 * 13 * 4
    assert found["layers"]["psf"]["bytes_in_memory"] == (9 + 25 + 49 + 81) * 4
    assert found["history"][0]["action"] == "made"


def test_info_of_what_is_not_there(store, run):
    found = json.loads(run("info", store(sample("missing")), "--json")[1])
    assert found["times"]["missing"] == 1
    assert found["layers"]["mask"]["missing"] == 1
    assert found["wcs"] is False
    assert found["configuration"] is None
    found = json.loads(run("info", store(sample("bare")), "--json")[1])
    assert list(found["layers"]) == ["science", "variance"]


def test_info_for_people(store, run):
    code, out, _ = run("info", store(sample("ragged")))
    assert code == 0
    assert "smallest 1 x 1, largest 300 x 280" in out
    assert "null" not in out
    assert "None" not in out


def test_info_reads_no_pixel(store, run, monkeypatch):
    name = store(sample("rich"))
    monkeypatch.delattr(MemoryReader, "image")
    monkeypatch.delattr(MemoryReader, "read")
    assert run("info", name)[0] == 0


@pytest.mark.parametrize("suffix", ["zarr", "zarr.zip", "h5"])
def test_info_of_an_import(run, tmp_path, suffix):
    import gzip
    import hashlib

    from wustore.cli._demo import build

    path, packed, store = tmp_path / "night.fits", tmp_path / "night.fits.gz", tmp_path / f"night.{suffix}"
    build().to_fits(str(path))
    packed.write_bytes(gzip.compress(path.read_bytes(), 6))
    assert run("convert", packed, store) == (0, "", "")
    found = json.loads(run("info", store, "--json")[1])
    assert found["version"] == "0.1.0"
    assert found["capsule"]["form"] == "fits"
    (file,) = found["capsule"]["files"]
    assert file["name"] == "night.fits.gz"
    assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file["compressed"] == "gzip"
    assert file["compressed_file_exact"] is True
    assert found["capsule"]["bytes_of_files"] == path.stat().st_size
    if suffix == "zarr":  # what the leftovers take, not what they give back
        assert found["capsule"]["bytes"] == sum(f.stat().st_size for f in (store / "fits").rglob("*") if f.is_file())
    assert found["source"]["layout"].startswith("kbmod-")
    assert found["bytes"] == sum(f.stat().st_size for f in [store, *store.rglob("*")] if f.is_file())
    if suffix != "zarr.zip":
        layers = found["layers"].values()
        assert 0 < sum(layer["bytes"] for layer in layers) < found["bytes"]
        assert all(layer["ratio"] == round(layer["bytes_in_memory"] / layer["bytes"], 2) for layer in layers)
    assert "night.fits.gz" in run("info", store)[1]


@pytest.mark.parametrize("capsule", [{}, {"files": 3}, {"files": [1, {}, {"name": [], "size": "x", "outer": 1}]}, 5])
def test_info_takes_nothing_for_granted(run, store, monkeypatch, capsule):
    monkeypatch.setattr(MemoryReader, "document", lambda self: {"capsule": capsule})
    assert run("info", store(sample("simple")))[0] == 0
    assert run("info", store(sample("simple")), "--json")[0] == 0


def test_info_of_an_unfinished_conversion(run, monkeypatch):
    def fail(*arguments, **options):
        raise errors.IncompleteError("the conversion has not finished", path="x", found="3 of 9 images", hint="Resume.")

    monkeypatch.setattr("wustore.backends.registry.open_reader", fail)
    code, out, err = run("info", "x", "--json")
    assert code == 4
    found = json.loads(out)
    assert found["complete"] is False
    assert found["found"] == "3 of 9 images"
    assert "Resume." in err
    code, out, _ = run("info", "x")
    assert code == 4
    assert "3 of 9 images" in out


def test_info_says_what_to_do_next(run, tmp_path):
    source, target = tmp_path / "a.h5", tmp_path / "x.zarr"
    reader = sample("ragged")
    copy(reader, backend_for_writing(str(source)).create(str(source), reader.meta))
    assert run("plan", source, target, "--parts", 4)[0] == 0
    for parts, left, text, step in (
        ([2], [0, 1, 3], "0-1,3", f"wustore part {target} K for each K of parts_left, then wustore finish {target}"),
        ([0, 1], [3], "3", f"wustore part {target} 3, then wustore finish {target}"),
        ([3], [], None, f"Run wustore finish {target}"),
    ):
        for part in parts:
            assert run("part", target, part)[0] == 0
        code, out, err = run("info", target, "--json")
        found = json.loads(out)
        assert code == 4
        assert (found["parts"], found["parts_left"]) == (4, left)
        assert step in found["hint"]
        assert step in err
        shown = [line.split()[1] for line in run("info", target)[1].splitlines() if line.startswith("parts_left")]
        assert shown == ([text] if text else [])
    assert run("finish", target)[0] == 0
    assert run("plan", source, tmp_path / "y.h5", "--parts", 1)[0] == 0
    assert "with --resume" in run("info", tmp_path / "y.h5")[2]


def test_info_is_quick_because_it_imports_little():
    program = (
        "import sys; from wustore.cli import main; main(['info', '--help']);"
        "print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"astropy", "zarr", "h5py", "dask", "xarray", "imagecodecs", "tqdm", "jsonschema", "pandas"}


# --- convert ----------------------------------------------------------------------------------------


def test_convert_and_diff(store, run):
    source = store(sample("rich"))
    target = f"ram:{uuid.uuid4().hex}"
    try:
        assert run("convert", source, target) == (0, "", "")
        assert run("diff", source, target) == (0, "", "")
        code, out, err = run("convert", source, target)
        assert (code, out) == (2, "")
        assert "exists" in err
        assert run("convert", source, target, "--overwrite", "--workers", "1")[0] == 0
    finally:
        MemoryBackend().remove(target)


def test_convert_to_itself(store, run):
    name = store(sample("simple"))
    assert run("convert", name, name, "--overwrite")[0] == 2


def test_convert_needs_a_format(store, run, tmp_path):
    code, _, err = run("convert", store(sample("simple")), tmp_path / "night.what")
    assert code == 2
    assert "--format" in err


def test_convert_passes_options_on(store, run):
    name, target = store(sample("simple")), f"ram:{uuid.uuid4().hex}"
    code, _, err = run("convert", name, target, "--profile", "p", "-o", "step=2", "-o", "word=GZIP_2")
    assert code == 2
    assert "['profile', 'step', 'word']" in err
    assert run("convert", name, target, "-o", "what")[0] == 2


# --- diff -------------------------------------------------------------------------------------------


def changed(reader, i, layer, place, value):
    """``reader`` with one pixel of one image changed."""
    images = [reader.image(k) for k in range(reader.meta.n_images)]
    images[i].layer(layer)[place] = value
    return MemoryReader(reader.meta, images)


def test_diff_names_the_place(store, run):
    a, b = store(sample("simple")), store(changed(sample("simple"), 1, "variance", (2, 3), 77))
    code, out, _ = run("diff", a, b)
    assert code == 1
    assert out.startswith("variance of image 1, 1 pixels, first at (y, x) = (2, 3)")
    code, out, _ = run("diff", a, b, "--json")
    assert code == 1
    assert json.loads(out)["equal"] is False
    assert len(json.loads(out)["differences"]) == 1
    assert json.loads(run("diff", a, a, "--json")[1]) == {"equal": True, "differences": []}


def test_diff_stops(store, run):
    code, out, err = run("diff", store(sample("simple")), store(sample("simple", seed=5)), "--limit", "2")
    assert code == 1
    assert len(out.splitlines()) == 2
    assert "2" in err


# --- verify -----------------------------------------------------------------------------------------


def sums_of(reader):
    rows = [[plane_checksum(reader.image(i).layer(layer)) for layer in LAYERS] for i in range(reader.meta.n_images)]
    return np.array(rows, dtype=np.uint32)


def test_verify(store, run, monkeypatch):
    name, sums = store(sample("missing")), sums_of(sample("missing"))
    code, out, _ = run("verify", name)
    assert code == 0
    assert "stores no checksums" in out
    monkeypatch.setattr(MemoryReader, "checksums", lambda self: sums)
    code, out, _ = run("verify", name)
    assert code == 0
    assert "every plane matches" in out
    sums[2, 1] ^= 1
    code, out, _ = run("verify", name)
    assert code == 3
    assert out.startswith("damaged: image 2, variance: checksum")
    code, out, _ = run("verify", name, "--json")
    assert code == 3
    assert [p["where"] for p in json.loads(out)["problems"]] == ["image 2, variance"]


def test_formats(run):
    code, out, _ = run("formats", "--json")
    assert code == 0
    assert {"zarr", "zarr-zip", "hdf5", "fits", "sharded-fits", "memory"} <= {row["name"] for row in json.loads(out)}
    assert ".zarr.zip" in run("formats")[1]


def test_demo_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    assert out.count("identical") == 3
    assert out.count("every value equal") == 2
    assert "\x1b" not in out
    assert list(tmp_path.iterdir()) == []


def test_demo_keeps_its_files(run, tmp_path):
    import imagecodecs

    code, out, _ = run("demo", "--keep", tmp_path / "new" / "demo")
    assert code == 0
    assert str(tmp_path / "new" / "demo") in out
    names = {entry.name for entry in (tmp_path / "new" / "demo").iterdir()}
    assert names == {"night.fits", "night.zarr", "night.h5", "from_zarr.fits", "from_hdf5.fits", "stamps.png"}
    picture = imagecodecs.png_decode((tmp_path / "new" / "demo" / "stamps.png").read_bytes())
    # The source is where it should be: the middle of each stamp is brighter than the sky.
    side = 21 * 6
    for k in range(8):
        stamp = picture[:, k * (side + 6) : k * (side + 6) + side]
        assert np.median(stamp[54:72, 54:72]) > np.median(stamp) + 60


def test_demo_says_so_when_a_byte_differs(run, tmp_path, monkeypatch):
    from wustore.cli import _demo as demo

    real = demo._sha256
    monkeypatch.setattr(demo, "_sha256", lambda path: real(path) if "hdf5" not in path.name else "0" * 64)
    code, out, _ = run("demo")
    assert code == 1
    assert "NOT identical" in out
    assert out.count("DIFFERENT") == 1


# --- the process ------------------------------------------------------------------------------------

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
    time.sleep(0.3 if i < 1 else 5)
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
        time.sleep(0.1)
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
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert err == ""


def terminal_output(master):
    try:
        return os.read(master, 4096)
    except OSError:  # Linux says so when the other side is closed
        return b""


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are those of POSIX")
def test_progress_only_on_a_terminal():
    import fcntl
    import pty
    import struct
    import termios

    program = SLOW.replace("0.3 if i < 1 else 5", "0").replace('"--workers", "1"', '"--overwrite"')
    quiet = subprocess.run(
        [sys.executable, "-c", program, "ram:out"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert quiet.stderr == ""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", program, "ram:out"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave) as process:
        os.close(slave)
        seen = b"".join(iter(lambda: terminal_output(master), b""))
    os.close(master)
    assert process.returncode == 0
    assert b"converting" in seen


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
