"""``wustore verify`` and ``wustore diff``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.model.checksum import plane_checksum
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.testing import sample


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
    assert json.loads(run("diff", a, a, "--json")[1]) == {"equal": True, "differences": [], "largest": {}}


def test_diff_stops(store, run):
    code, out, err = run("diff", store(sample("simple")), store(sample("simple", seed=5)), "--limit", "2")
    assert code == 1
    assert len(out.splitlines()) == 2
    assert "2" in err


def sums_of(reader):
    rows = [[plane_checksum(reader.image(i).layer(layer)) for layer in LAYERS] for i in range(reader.meta.n_images)]
    return np.array(rows, dtype=np.uint32)


def test_verify(store, run, monkeypatch):
    name, sums = store(sample("missing")), sums_of(sample("missing"))
    code, out, _ = run("verify", name)
    assert code == 0
    assert "carries no checksums" in out
    monkeypatch.setattr(MemoryReader, "checksums", lambda self: sums)
    code, out, _ = run("verify", name)
    assert code == 0
    assert "every plane matches" in out
    sums[2, 1] ^= 1
    code, out, _ = run("verify", name)
    assert code == 3
    assert out.startswith("damaged: image 2, variance: ")
    code, out, _ = run("verify", name, "--json")
    assert code == 3
    assert [p["where"] for p in json.loads(out)["problems"]] == ["image 2, variance"]


def test_diff_within_a_tolerance(store, run):
    a = store(sample("simple"))
    place = sample("simple").image(1).variance[2, 3]
    b = store(changed(sample("simple"), 1, "variance", (2, 3), place + np.float32(0.5)))
    found = json.loads(run("diff", a, b, "--json")[1])
    assert found["largest"] == {"variance": 0.5}
    assert found["differences"][0]["largest"] == 0.5
    assert run("diff", a, b, "--atol", "0.4")[0] == 1
    assert run("diff", a, b, "--atol", "0.6")[0] == 0
    assert run("diff", a, b, "--rtol", "1")[0] == 0
    assert run("diff", a, b, "-q") == (1, "", "")
    assert "largest difference: variance 0.5" in run("diff", a, b)[2]


def test_checksum_receipt_repair_and_clean(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = sample("simple")
    copy(source, backend_for_writing("a.zarr").create("a.zarr", source.meta))
    code, out, _ = run("checksum", "a.zarr")
    assert code == 0
    lines = dict(reversed(line.split("  ")) for line in out.splitlines())
    files = {str(path): path.read_bytes() for path in Path("a.zarr").rglob("*") if path.is_file()}
    assert lines == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert run("checksum", "a.zarr", "--receipt", "r.json")[0] == 0
    assert run("checksum", "a.zarr", "--receipt", "r.json")[0] == 2
    assert run("checksum", "a.zarr", "a.zarr", "--receipt", "s.json")[0] == 2
    code, out, _ = run("verify", "a.zarr", "--receipt", "r.json", "--against", "a.zarr", "--json")
    assert code == 0
    found = json.loads(out)
    assert len(found["files"]) == len(files)
    assert found["counts"]["planes_with_checksum"] == found["counts"]["planes"] == 12
    assert [what.split()[0] for what in found["proven"]] == ["every", "every", "every"]
    copy(sample("simple", 1), backend_for_writing("b.zarr").create("b.zarr", sample("simple", 1).meta))
    assert run("verify", "a.zarr", "--against", "b.zarr")[0] == 1
    assert run("verify", "b.zarr", "--receipt", "r.json")[0] == 3
    Path("a.zarr/science/c.1.0.0").write_bytes(b"torn")
    code, out, _ = run("repair", "a.zarr", "c.zarr")
    assert code == 1
    assert out.startswith("lost: image 1: ")
    assert run("verify", "c.zarr")[0] == 0
    assert run("checksum", "a.zarr", "--receipt", "s.json")[0] == 3
    Path(".x.h5.wustore-partial").mkdir()
    assert ": unfinished\n" in run("clean", ".")[1]
    assert ": unfinished, removed\n" in run("clean", "x.h5", "--unfinished")[1]
    assert json.loads(run("clean", ".", "--json")[1]) == []
