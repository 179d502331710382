"""Images that are encoded before there is a file to put them into."""

from __future__ import annotations

import os
import pickle
import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
from handles import open_below
from in_memory import in_memory

import wustore
from wustore.backends.fits import writer as fits_writer
from wustore.backends.fits.restored_files import StoreChangedWarning
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.backends.hdf5.encoder import Encoder
from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError, UsageError, WuStoreError
from wustore.ops import plans, run_parts
from wustore.ops.copy import copy
from wustore.testing import sample, with_capsule


def save(reader, path, **options):
    capsule = reader.capsule()
    copy(reader, backend_for_writing(str(path)).create(str(path), reader.meta, capsule=capsule, **options))
    return path


def encoders(tmp_path):
    """Every encoder, with an image and its part of the capsule."""
    plain = with_capsule(sample("ragged"))
    origin = save(sample("ragged"), tmp_path / "origin.fits")
    with wustore.open_reader(origin) as reader:
        restored, capsule, piece = reader.image(3), reader.capsule(), reader.image_capsule(3)
    changed = replace(restored, science=np.ascontiguousarray(restored.science[::-1]))
    exact = fits_writer.encoder(plain.meta, capsule=capsule)
    yield Encoder("x.h5", plain.meta, "portable", "images", None, 1), plain.image(3), plain.image_capsule(3)
    yield fits_writer.encoder(plain.meta, mode="kbmod"), plain.image(3), None
    yield exact, restored, piece
    yield exact, changed, piece


def test_pieces_are_not_executed_and_damage_is_typed(tmp_path):
    generator = random.Random(1)
    for encoder, image, capsule in encoders(tmp_path):
        piece = encoder.encode(3, image, capsule)
        assert encoder.encode(3, image, capsule) == piece
        encoder.parse(piece)
        table = int.from_bytes(piece[:8], "little") + 8
        for _ in range(300):
            data = bytearray(piece)
            for _ in range(generator.randint(1, 3)):
                data[generator.randrange(table)] ^= 1 << generator.randrange(8)
            del data[len(data) - generator.choice([0, 0, 1, 100]) :]
            try:
                encoder.parse(bytes(data))
            except (WuStoreError, MemoryError):
                continue
        for foreign in (b"", b"\0" * 40, pickle.dumps(os.getcwd), piece[:-1]):
            with pytest.raises(CorruptError):
                encoder.parse(foreign)


def test_pieces_of_another_writer_are_refused(tmp_path):
    made = [(encoder, encoder.encode(3, image, capsule)) for encoder, image, capsule in encoders(tmp_path)]
    for a, (encoder, _) in enumerate(made):
        for b, (_, piece) in enumerate(made):
            if a != b and {a, b} != {2, 3}:  # both of the encoder of identical files
                with pytest.raises(CorruptError):
                    encoder.parse(piece)


def test_placing_an_image_twice(tmp_path):
    source = sample("ragged")
    for name in ("x.h5", "x.fits"):
        writer = backend_for_writing(name).create(str(tmp_path / name), source.meta)
        encoder = fits_writer.encoder(source.meta) if name == "x.fits" else Encoder(
            name, source.meta, "portable", "images", None, 1
        )  # fmt: skip
        writer.place(1, encoder.encode(1, source.image(1)))
        with pytest.raises(UsageError):
            writer.place(1, encoder.encode(1, source.image(1)))
        with pytest.raises(UsageError):
            writer.write(1, source.image(1))
        with pytest.raises(UsageError):
            writer.place(4, encoder.encode(1, source.image(1)))
        writer.abort()
    assert not list(tmp_path.iterdir())


def test_writing_waits_without_pickle(tmp_path, monkeypatch):
    """Images that come before their turn go to disk in the same form as pieces."""
    monkeypatch.setattr("wustore.backends.hdf5.writer._EARLY_IN_MEMORY", 0)
    source = with_capsule(sample("ragged"))
    save(source, tmp_path / "a.h5")
    writer = Hdf5Backend().create(str(tmp_path / "b.h5"), source.meta, capsule=source.capsule())
    for i in (3, 2, 1, 0):
        writer.write(i, source.image(i), source.image_capsule(i))
    writer.commit()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.fixture
def edited(tmp_path):
    """A store whose first image was changed since it was imported from FITS, and whose second one was not."""
    origin = save(sample("simple"), tmp_path / "origin.fits")
    with wustore.open_reader(origin) as reader:
        images = [reader.image(i) for i in range(3)]
        images[1] = replace(images[1], science=np.ascontiguousarray(images[1].science[::-1]))
        path = save(in_memory(reader, images), tmp_path / "edited.h5")
    return str(path)


@pytest.mark.parametrize("form", ["fits", "sharded-fits"])
def test_changed_pixels_fall_back_as_ever(edited, tmp_path, form):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.warns(StoreChangedWarning, match="pixels of image 1"):
        wustore.convert(edited, tmp_path / "a" / "x.fits", format=form)
    target = str(tmp_path / "b" / "x.fits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plans.plan(edited, target, format=form)
        run_parts.part(target, 0)
    with pytest.warns(StoreChangedWarning, match="pixels of image 1"):
        run_parts.finish(target)
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
    assert len(list((tmp_path / "b").iterdir())) == len(list((tmp_path / "a").iterdir()))


def test_losses_are_told_at_the_end(tmp_path):
    source = save(sample("rich"), tmp_path / "source.h5")
    options = {"mode": "kbmod", "capsule": False, "lossy": True}
    told = []
    for name, resume in (("a.fits", False), ("b.fits", True)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wustore.convert(source, tmp_path / name, resume=resume, workers=1, **options)
        told.append([str(warning.message).replace(name, "target") for warning in caught])
    assert told[0] == told[1]
    assert len([text for text in told[0] if "SCI_" in text]) == 1
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_what_an_ordinary_writer_refuses_is_refused_at_once(tmp_path):
    source = save(sample("simple"), tmp_path / "source.h5")
    (tmp_path / "0_x.fits").write_bytes(b"of another set")
    for target, options in (
        ("x.fits", {"format": "sharded-fits"}),
        ("x.fits", {"compression_type": "ZIP"}),
        ("x.h5", {"profile": "zap"}),
    ):
        with pytest.raises(WuStoreError):
            plans.plan(str(source), str(tmp_path / target), **options)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["0_x.fits", "source.h5"]


@pytest.mark.parametrize("changed", [False, True])
def test_nothing_stays_open(tmp_path, changed):
    """Images that wait for the first one are in a file without a name, which is closed whatever happens."""
    wustore.convert(save(sample("simple"), tmp_path / "a.h5"), tmp_path / "b.fits", format="sharded-fits")
    wustore.convert(tmp_path / "b.fits", tmp_path / "c.h5", source_format="sharded-fits")
    with wustore.open_reader(tmp_path / "c.h5") as reader:
        images = [reader.image(i) for i in range(3)]
        pieces = [reader.image_capsule(i) for i in range(3)]
        before = open_below(tmp_path)
        writer = backend_for_writing("x.fits", "fits").create(
            str(tmp_path / "x.fits"), reader.meta, capsule=reader.capsule(), workers=1
        )
        writer.write(2, images[2], pieces[2])
        assert [name for name in open_below(tmp_path) if name not in before]
        if changed:
            images[1] = replace(images[1], science=images[0].science)

            def end():
                writer.write(1, images[1], pieces[1])
                writer.write(0, images[0], pieces[0])
                writer.commit()

            with pytest.warns(StoreChangedWarning):
                end()
            with wustore.open_reader(tmp_path / "x.fits") as result:
                for i in range(3):
                    assert result.image(i).science.tobytes() == images[i].science.tobytes()
        else:
            writer.write(1, images[1], pieces[1])
            writer.abort()
        assert open_below(tmp_path) == before
