"""``wustore verify`` and ``wustore diff``."""

from __future__ import annotations

import json

import numpy as np

from wustore.backends.memory import MemoryReader
from wustore.format.planes import plane_checksum
from wustore.model.meta import LAYERS
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
