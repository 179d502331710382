"""``wustore convert``."""

from __future__ import annotations

import uuid

from wustore.backends.memory import MemoryBackend
from wustore.testing import sample


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
