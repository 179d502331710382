"""Stores at URLs: requests counted, ranges small, damage and dropped connections noticed."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import logging
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from astropy.wcs import WCS

import wustore
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.cli import main
from wustore.errors import (
    CorruptError,
    IncompleteError,
    MissingDependencyError,
    StoreNotFoundError,
    StoreReplacedError,
    UsageError,
    WuStoreError,
)
from wustore.ops import edit, plans, run_parts
from wustore.ops.copy import copy
from wustore.storage import locks
from wustore.storage import url as remote
from wustore.storage.stores import writable_keys
from wustore.testing import assert_same, sample, with_capsule
from wustore.work_unit import work_unit_from

pytest.importorskip("obstore", reason="reading URLs needs the extra cloud")
pytest.importorskip("moto.server", reason="the S3 server of the tests needs moto[server]")
boto3 = pytest.importorskip("boto3")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto"),
]

STAMP = (slice(1, 2), slice(300, 321), slice(300, 321))


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        from s3_server import Server

        running = Server()
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*running.address))
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield running
        running.stop()


@pytest.fixture
def s3(server):
    server.calls.clear()
    return server


@pytest.fixture(scope="module")
def many():
    """Eight images of 512 x 512: noise as KBMOD's FITS holds it."""
    rng = np.random.default_rng(1)
    planes = [np.round(rng.normal(0, 5, (512, 512)), 2).astype(np.float32) for _ in range(16)]
    return wustore.WorkUnit(
        wustore.ImageStack(times=60000 + np.arange(8.0), sci=planes[:8], var=[abs(p) + 1 for p in planes[8:]]),
        wustore.SearchConfiguration(),
        wcs=WCS(naxis=2),
    )


def put(path, key):
    boto3.client("s3").upload_file(str(path), "bucket", key)
    return f"s3://bucket/{key}"


def save(source, target, **options):
    copy(source, backend_for_writing(target).create(target, source.meta, capsule=source.capsule(), **options))
    return target


@pytest.mark.parametrize("kind", ["rich", "ragged", "missing", "dtypes", "chunked"])
def test_zarr_round_trip(s3, kind):
    source = with_capsule(sample(kind))
    url = save(source, f"s3://bucket/{kind}.zarr")
    with wustore.open_reader(url) as reader:
        assert_same(source, reader)
        assert reader.capsule().head == source.capsule().head
        again = pickle.loads(pickle.dumps(reader))
    assert again.image(1).science.tobytes() == source.image(1).science.tobytes()


@pytest.mark.parametrize(("suffix", "most"), [(".zarr", 2), (".h5", 3)])
def test_requests_of_an_open(s3, tmp_path, suffix, most, many):
    if suffix == ".zarr":
        url = "s3://bucket/open.zarr"
        wustore.save(many, url)
    else:
        wustore.save(many, tmp_path / "open.h5")
        url = put(tmp_path / "open.h5", "open.h5")
    s3.calls.clear()
    reader = wustore.open_reader(url)
    assert len(s3.calls) <= most, s3.calls
    assert not any("/c." in path and "packed" not in path for _, path, _ in s3.calls)
    assert reader.meta.n_images == 8


def test_opening_a_thousand_images_takes_two_requests(s3, tmp_path):
    planes = [np.ones((4, 4), np.float32)] * 1000
    stack = wustore.ImageStack(times=60000 + np.arange(1000.0), sci=planes, var=planes)
    wustore.save(wustore.WorkUnit(stack, wustore.SearchConfiguration(), wcs=WCS(naxis=2)), tmp_path / "k.zarr")
    for name in ("zarr.json", "packed/c.0"):
        put(tmp_path / "k.zarr" / name, f"k.zarr/{name}")
    s3.calls.clear()
    with wustore.open("s3://bucket/k.zarr") as found:
        assert len(found) == 1000
    assert len(s3.calls) == 2, s3.calls


def test_requests_of_a_stamp_and_of_a_full_load(s3, many):
    wustore.save(many, "s3://bucket/counted.zarr")
    with wustore.open_reader("s3://bucket/counted.zarr") as reader:
        s3.calls.clear()
        reader.read("science", (slice(0, 8), *STAMP[1:]))
        assert len(s3.calls) == 2 * 8, s3.calls  # the index of each shard, and the chunk in it
        s3.calls.clear()
        for _ in reader.images():
            pass
        assert len(s3.calls) == 3 * 8, s3.calls  # a shard of each layer, whole


def test_a_stamp_reads_its_chunks_only(s3, many):
    wustore.save(many, "s3://bucket/stamp.zarr")
    reader = wustore.open_reader("s3://bucket/stamp.zarr")
    s3.calls.clear()
    box = reader.read("science", STAMP)
    assert box.tobytes() == np.ascontiguousarray(many.im_stack.sci[1][300:321, 300:321]).tobytes()
    gets = [(path, length) for method, path, length in s3.calls if method == "GET"]
    assert len(gets) == 2, gets  # the index of the shard, one chunk of four
    assert all(path.endswith("science/c.1.0.0") for path, _ in gets)
    shard = boto3.client("s3").head_object(Bucket="bucket", Key="stamp.zarr/science/c.1.0.0")["ContentLength"]
    assert sum(length for _, length in gets) < 0.3 * shard


@pytest.mark.parametrize("suffix", [".h5", ".fits"])
def test_one_stamp_of_a_large_file(s3, tmp_path, suffix, many):
    path = tmp_path / f"stamp{suffix}"
    wustore.save(many, path)
    url = put(path, path.name)
    s3.calls.clear()
    with wustore.open_reader(url) as reader, wustore.open_reader(path) as local:
        assert reader.read("science", STAMP).tobytes() == local.read("science", STAMP).tobytes()
        # At most five blocks of 256 KiB around metadata, indices and checksums, and the chunks: one of each image.
        gets = [length for method, _, length in s3.calls if method == "GET"]
        assert suffix != ".h5" or len(gets) <= 6
        assert 0 < sum(gets) <= 5 * (1 << 18) + 0.04 * path.stat().st_size
        assert_same(local, reader)


@pytest.mark.parametrize("suffix", [".h5", ".fits", ".fits.gz"])
@pytest.mark.parametrize("kind", ["rich", "ragged", "missing", "dtypes", "chunked", "flags"])
def test_files_are_read_as_local_ones(s3, tmp_path, suffix, kind):
    source = sample(kind)
    path = tmp_path / f"{kind}{suffix}"
    if suffix == ".fits.gz":
        plain = save(source, str(tmp_path / f"{kind}.fits"))
        path.write_bytes(gzip.compress(Path(plain).read_bytes()))
    else:
        save(source, str(path))
    with wustore.open_reader(put(path, path.name)) as reader, wustore.open_reader(path) as local:
        assert_same(local, reader)
        for layer in ("science", "mask"):
            if reader.meta.has_layer(layer):
                shape = reader.meta.layer_shape(layer)
                index = (slice(0, shape[0]), slice(shape[1] // 3, shape[1] // 2 + 1), slice(1, shape[2] - 1))
                assert reader.read(layer, index).tobytes() == local.read(layer, index).tobytes()
        again = pickle.loads(pickle.dumps(reader))
        assert again.image(0).science.tobytes() == local.image(0).science.tobytes()


@pytest.mark.parametrize("compression", ["GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1", "RICE_1", "NOCOMPRESS"])
@pytest.mark.parametrize("tile", [(1, 90), (16, 16), (64, 90)])
def test_windows_of_every_tile_compression(compression, tile, s3, tmp_path):
    from astropy.io import fits

    from wustore.backends.fits.hdu.image import Plane
    from wustore.backends.fits.hdu.scan import scan

    rng = np.random.default_rng(1)
    if compression == "PLIO_1":
        plane = rng.integers(0, 9, (64, 90)).astype(np.int16)
    else:
        plane = rng.normal(0, 5, (64, 90)).astype(np.float32)
    if compression == "HCOMPRESS_1" and tile[0] == 1:
        return  # HCOMPRESS has no tiles of one row
    hdu = fits.CompImageHDU(plane, compression_type=compression, tile_shape=tile)
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    data = path.read_bytes()
    read = Plane(scan(data, "a").hdus[1], "a")
    fetched = []

    def fetch(ranges):
        fetched.extend(ranges)
        return [data[start:stop] for start, stop in ranges]

    for rows, columns in ((slice(0, 64), slice(0, 90)), (slice(17, 18), slice(3, 9)), (slice(5, 40), slice(80, 90))):
        assert read.read_ranges(fetch, rows, columns).tobytes() == read.read(data, rows, columns).tobytes()
    with pytest.raises(CorruptError, match="ends inside"):
        read.read_ranges(lambda ranges: [part[:-1] for part in fetch(ranges)])


def test_sharded_set(s3, tmp_path):
    source = sample("simple")
    copy(source, wustore.backends.registry.backend_named("sharded-fits").create(str(tmp_path / "wu.fits"), source.meta))
    for path in tmp_path.iterdir():
        put(path, f"set/{path.name}")
    with wustore.open_reader("s3://bucket/set/wu.fits") as reader, wustore.open_reader(tmp_path / "wu.fits") as local:
        assert reader.format == "sharded-fits"
        assert_same(local, reader)
    boto3.client("s3").delete_object(Bucket="bucket", Key="set/1_wu.fits")
    with pytest.raises(CorruptError, match="a shard is missing"):
        wustore.open_reader("s3://bucket/set/wu.fits")


@pytest.mark.parametrize("name", ["x.zarr", "x.h5", "x.fits", "x"])
@pytest.mark.parametrize("bucket", ["bucket", "no-such-bucket"])
def test_nothing_there(s3, name, bucket):
    with pytest.raises(StoreNotFoundError):
        wustore.open_reader(f"s3://{bucket}/nothing/{name}")


def test_a_missing_object_is_damage(s3):
    url = save(sample("simple"), "s3://bucket/damaged.zarr")
    boto3.client("s3").delete_object(Bucket="bucket", Key="damaged.zarr/science/c.1.0.0")
    with wustore.open_reader(url) as reader:
        assert reader.image(0).science.tobytes() == sample("simple").image(0).science.tobytes()
        with pytest.raises(CorruptError, match="a shard is missing"):
            reader.image(1)
        with pytest.raises(CorruptError, match="a shard is missing"):
            reader.read("science", (slice(0, 3), slice(0, 2), slice(0, 2)))


@pytest.mark.parametrize("suffix", [".h5", ".fits"])
def test_a_file_replaced_by_a_shorter_one(s3, tmp_path, suffix, many):
    path = tmp_path / f"short{suffix}"
    wustore.save(many, path)
    url = put(path, path.name)
    reader = wustore.open_reader(url)
    reader.read("science", STAMP)
    boto3.client("s3").put_object(Bucket="bucket", Key=path.name, Body=path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((CorruptError, OSError)):
        reader.image(7)


@pytest.mark.parametrize("suffix", [".h5", ".fits"])
def test_a_file_replaced_by_one_of_the_same_size(s3, tmp_path, suffix, many):
    path = tmp_path / f"same{suffix}"
    wustore.save(many, path)
    url = put(path, path.name)
    with wustore.open_reader(url) as reader:
        reader.read("science", STAMP)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        boto3.client("s3").put_object(Bucket="bucket", Key=path.name, Body=bytes(content))
        s3.calls.clear()
        # Each range is asked for with the version that was opened: no request is made to notice.
        with pytest.raises(StoreReplacedError):
            reader.read("science", (slice(6, 7), slice(0, 21), slice(0, 21)))
        assert [method for method, _, _ in s3.calls if method == "HEAD"] == []


def test_convert_between_buckets_and_back(s3, tmp_path):
    local = save(with_capsule(sample("rich")), str(tmp_path / "a.zarr"))
    wustore.convert(local, "s3://bucket/there.zarr")
    wustore.convert("s3://bucket/there.zarr", "s3://bucket/further.zarr", workers=2)
    wustore.convert("s3://bucket/further.zarr", str(tmp_path / "b.zarr"))
    files = {path.relative_to(local).as_posix(): path.read_bytes() for path in Path(local).rglob("*") if path.is_file()}
    other = tmp_path / "b.zarr"
    assert files == {p.relative_to(other).as_posix(): p.read_bytes() for p in other.rglob("*") if p.is_file()}


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_a_fits_file_from_a_bucket_comes_back_identical(s3, tmp_path, suffix):
    plain = Path(save(sample("chunked"), str(tmp_path / "a.fits"))).read_bytes()
    path = tmp_path / f"source{suffix}"
    path.write_bytes(plain if suffix == ".fits" else gzip.compress(plain, mtime=0))
    wustore.convert(put(path, path.name), "s3://bucket/archive.zarr", overwrite=True)
    wustore.convert("s3://bucket/archive.zarr", str(tmp_path / "back.fits"))
    assert (tmp_path / "back.fits").read_bytes() == plain
    reader = wustore.open_reader(f"s3://bucket/{path.name}")
    put(tmp_path / "a.fits", path.name)
    boto3.client("s3").put_object(Bucket="bucket", Key=path.name, Body=plain + b"more")
    with pytest.raises(StoreReplacedError, match="replaced or changed"):
        reader.capsule()


def test_resume_on_a_bucket(s3, tmp_path):
    source = save(sample("rich"), str(tmp_path / "a.zarr"))
    target = "s3://bucket/resumed.zarr"
    plans.plan(source, target, parts=2)
    run_parts.part(target, 1)
    with pytest.raises(IncompleteError):
        wustore.open_reader(target)
    s3.calls.clear()
    run_parts.part(target, 0)
    run_parts.part(target, 1)
    run_parts.finish(target)
    written = [path for method, path, _ in s3.calls if method == "PUT" and "/science/c" in path]
    assert len(written) == 2, written  # the images of part 1 were there already
    assert_same(sample("rich"), wustore.open_reader(target))


# --- two that write, and writers that are killed ----------------------------------------------------------


def test_overwriting_keeps_the_old_store_until_the_new_one_is_whole(s3):
    url = save(sample("simple"), "s3://bucket/kept.zarr")
    source = sample("chunked")
    writer = backend_for_writing(url).create(url, source.meta, overwrite=True)
    for i, image in source.images():
        writer.write(i, image)
        with wustore.open_reader(url) as reader:
            assert_same(sample("simple"), reader)
    with pytest.raises(UsageError, match="another process is changing"):
        wustore.save(work_unit_from(sample("simple"), lazy=True), url, overwrite=True)
    with pytest.raises(UsageError, match="another process is changing"):
        edit.append(url, url, duplicates=True)
    s3.calls.clear()
    writer.commit()
    roots = [path for method, path, _ in s3.calls if method == "PUT" and path.endswith("kept.zarr/zarr.json")]
    assert len(roots) == 1
    with wustore.open_reader(url) as reader:
        assert_same(source, reader)
    with contextlib.closing(writable_keys(url)) as keys:
        assert not [key for key in keys.list("") if key.startswith((".", "science/c."))]


def test_edits_at_a_url(s3):
    url = save(with_capsule(sample("simple")), "s3://bucket/edited.zarr")
    edit.repack(url, layout="cutouts")
    assert edit.append(url, url, duplicates=True, drop_capsule=True) == 3
    edit.drop(url, ["mask"])
    edit.repack(url, profile="portable")
    with wustore.open_reader(url) as reader:
        assert [entry["action"] for entry in reader.meta.history] == ["repack", "append", "drop", "repack"]
        for i in range(6):
            assert reader.image(i).science.tobytes() == sample("simple").image(i % 3).science.tobytes()
    assert wustore.verify(url) == []


def is_second(reader):
    """Return whether a store is the second of the samples that the writers write."""
    return reader.meta.layer_shape("science") == sample("chunked").meta.layer_shape("science")


def let_both_look(monkeypatch):
    """From here on, two that want to write have looked, and seen nobody who writes, before one of them begins."""
    refuse_others, met = locks.Claim.refuse_others, threading.Barrier(2)

    def both(claim):
        version = refuse_others(claim)
        met.wait(60)
        return version

    monkeypatch.setattr(locks.Claim, "refuse_others", both)


def at_once(*acts):
    """Do several things in threads; return the error of ours that each had, or None."""
    errors = [None] * len(acts)

    def run(k):
        try:
            acts[k]()
        except WuStoreError as error:
            errors[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_two_writers_at_one_url(s3, monkeypatch):
    """One of the two wins each time, and the other one gets an error of ours."""
    url, sources = "s3://bucket/two.zarr", [sample("simple"), sample("chunked")]
    units = [work_unit_from(source, lazy=True) for source in sources]
    let_both_look(monkeypatch)
    for _ in range(8):
        errors = at_once(*(partial(wustore.save, unit, url, overwrite=True) for unit in units))
        (won,) = [k for k in (0, 1) if errors[k] is None]
        assert isinstance(errors[1 - won], UsageError)
        with wustore.open_reader(url) as reader:
            assert_same(sources[won], reader)


def test_two_appends_at_one_url(s3, monkeypatch):
    url = save(sample("simple"), "s3://bucket/appended.zarr")
    let_both_look(monkeypatch)
    errors = at_once(*[partial(edit.append, url, url, duplicates=True)] * 2)
    assert [type(error) for error in errors if error is not None] == [UsageError]
    with wustore.open_reader(url) as reader:
        assert reader.meta.n_images == 6
    assert wustore.verify(url) == []


def test_an_append_whose_source_grows_before_it_begins(s3, monkeypatch):
    """It appends what the source held when it was opened, to what the store holds when its turn comes."""
    url, take = save(sample("simple"), "s3://bucket/grown.zarr"), locks.Claim.take

    def late(claim):
        monkeypatch.undo()
        assert edit.append(url, url, duplicates=True) == 3
        take(claim)

    monkeypatch.setattr(locks.Claim, "take", late)
    assert edit.append(url, url, duplicates=True) == 3
    with wustore.open_reader(url) as reader:
        for i in range(9):
            assert reader.image(i).science.tobytes() == sample("simple").image(i % 3).science.tobytes()
        assert reader.meta.n_images == 9
    assert wustore.verify(url) == []


@pytest.mark.slow
def test_writers_that_are_killed(s3, tmp_path):
    """At any of 50 requests: nothing, the old store, or the new one, and the next writer goes on at once."""
    url = "s3://bucket/killed.zarr"
    sources = [sample("simple"), sample("chunked")]
    paths = [save(source, str(tmp_path / f"{k}.zarr")) for k, source in enumerate(sources)]
    seen = set()
    for number in range(50):
        if number == 25:
            save(sources[0], url, overwrite=True)  # from here on there is an old store
        seen.add(_killed_write(s3, paths[1], url, number % 25 + 1))
        try:
            with wustore.open_reader(url) as reader:
                assert_same(sources[is_second(reader)], reader)
                seen.add(("old", "new")[is_second(reader)])
        except (IncompleteError, StoreNotFoundError):
            assert number < 25
            seen.add("none")
        if number >= 25:
            save(sources[0], url, overwrite=True)
    assert seen >= {"none", "old", "killed"}, seen


def _killed_write(server, source, url, number):
    """Overwrite a store in a process that is killed at a request; return how it ended."""
    process = subprocess.Popen([sys.executable, "-m", "wustore", "convert", "-q", "--overwrite", source, url])
    left = [number]

    def count():
        left[0] -= 1
        if left[0] == 0:
            process.kill()
            process.wait()

    server.on_request = count
    try:
        return "killed" if process.wait() < 0 else "ended"
    finally:
        server.on_request = lambda: None


@pytest.mark.parametrize("name", ["s3://bucket/w.h5", "s3://bucket/w.fits", "http://127.0.0.1:1/w.zarr"])
def test_where_nothing_can_be_written(s3, name):
    with pytest.raises(UsageError, match="rite"):
        backend_for_writing(name).create(name, sample("simple").meta)


# --- other protocols ----------------------------------------------------------------------------------


def test_memory_urls(tmp_path):
    source = with_capsule(sample("rich"))
    base = f"memory://{tmp_path.name}"  # one memory for the whole process
    url = save(source, f"{base}/x.zarr")
    with wustore.open_reader(url) as reader:
        assert_same(source, reader)
    with pytest.raises(StoreNotFoundError):
        wustore.open_reader(f"{base}/nothing.zarr")
    import fsspec

    system = fsspec.filesystem("memory")
    for name in ("x.h5", "x.fits"):
        system.put_file(save(sample("rich"), str(tmp_path / name)), f"/{tmp_path.name}/{name}")
        with wustore.open_reader(f"{base}/{name}") as reader:
            assert_same(wustore.open_reader(tmp_path / name), reader)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A web server that answers ranges, as the ones in use do."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        status, extra = 200, []
        if wanted and self.server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            low, high = (int(first), int(last or len(data) - 1)) if first else (len(data) - int(last), len(data) - 1)
            low, high = max(low, 0), min(high, len(data) - 1)
            extra = [("Content-Range", f"bytes {low}-{high}/{len(data)}")]
            data, status = data[low : high + 1], 206
        self.send_response(status)
        for name, value in [("Content-Length", str(len(data))), ("Accept-Ranges", "bytes"), *extra]:
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.server.sent += len(data)
            self.wfile.write(data)


@pytest.fixture
def web(tmp_path):

    def handler(*arguments):
        return Ranges(*arguments, directory=str(tmp_path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.ranges, running.sent = True, 0
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["x.zarr", "x.h5", "x.fits"])
def test_web_server(web, tmp_path, name):
    local = save(sample("chunked"), str(tmp_path / name))
    with wustore.open_reader(f"{web.url}/{name}") as reader, wustore.open_reader(local) as expected:
        assert_same(expected, reader)
    with pytest.raises(StoreNotFoundError):
        wustore.open_reader(f"{web.url}/no-{name}")


@pytest.mark.parametrize("form", ["fits", "sharded-fits"])
def test_an_indexed_fits_opens_in_three_requests_at_most(s3, tmp_path, many, form):
    path = tmp_path / "indexed.fits"
    wustore.save(many, path, format=form)
    wustore.index(path)
    for name in sorted(path.parent.glob("*indexed.fits*")):
        put(name, name.name)
    s3.calls.clear()
    with wustore.open_reader("s3://bucket/indexed.fits") as reader, wustore.open_reader(path) as expected:
        assert len(s3.calls) <= 3
        assert np.array_equal(reader.read("science", STAMP), expected.read("science", STAMP))
        assert_same(expected, reader)


def test_ranges_from_the_web(web, tmp_path, many):
    wustore.save(many, tmp_path / "x.h5")
    with wustore.open_reader(f"{web.url}/x.h5?signature=very-secret") as reader:
        assert reader.path == f"{web.url}/x.h5"
        reader.read("science", STAMP)
    assert web.sent <= 5 * (1 << 18) + 0.04 * (tmp_path / "x.h5").stat().st_size
    web.ranges = False
    with pytest.raises(OSError, match="range requests"):
        wustore.open_reader(f"{web.url}/x.h5")


# --- options, refusals, servers that do not answer ------------------------------------------------------


@pytest.fixture
def by_options(s3, monkeypatch):
    """Options that lead to the server, which the environment does not."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/no/such/file")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/no/such/file")
    return {"endpoint_url": "http://{}:{}".format(*s3.address), "key": "test", "secret": "very-secret"}


def test_storage_options_everywhere(by_options, tmp_path):
    url, options = "s3://bucket/options.zarr", {"storage_options": by_options}
    local = save(with_capsule(sample("simple")), str(tmp_path / "a.zarr"))
    wustore.convert(local, url, **options)
    wustore.save(wustore.open(url, **options), "s3://bucket/options2.zarr", **options)
    wustore.convert(url, tmp_path / "b.zarr", **options)
    assert wustore.diff(url, tmp_path / "b.zarr", **options) == []
    assert wustore.verify(url, **options) == []
    assert wustore.append(url, url, duplicates=True, drop_capsule=True, **options) == 3
    wustore.repack(url, layout="cutouts", **options)
    wustore.drop(url, ["mask"], **options)
    with wustore.open_reader(url, **options) as reader:
        assert reader.meta.n_images == 6
        again = pickle.loads(pickle.dumps(reader))
        assert again.image(1).science.tobytes() == sample("simple").image(1).science.tobytes()
    wustore.convert(local, url, overwrite=True, resume=True, **options)
    with pytest.raises(UsageError, match="stores no storage options"):
        wustore.convert(url, tmp_path / "c.zarr", resume=True, **options)


def test_storage_options_of_commands(by_options, tmp_path, capsys):
    local = save(sample("simple"), str(tmp_path / "a.zarr"))
    words = [word for name, value in by_options.items() for word in ("--storage-option", f"{name}={value}")]
    for command in (
        ["convert", local, "s3://bucket/command.zarr", "--overwrite"],
        ["info", "s3://bucket/command.zarr"],
        ["repack", "s3://bucket/command.zarr", "--layout", "cutouts"],
        ["append", "s3://bucket/command.zarr", local, "--duplicates"],
        ["verify", "s3://bucket/command.zarr"],
    ):
        assert main([*command, *words]) == 0, command
    assert main(["info", "s3://bucket/command.zarr", *words, "--storage-option", "no-such=very-secret"]) == 2
    assert main(["info", "s3://bucket/command.zarr", *words, "--storage-option", "no_such=1"]) == 2
    said = capsys.readouterr()
    assert "very-secret" not in said.err + said.out
    assert "no_such" in said.err


def test_profiles(by_options, tmp_path, monkeypatch):
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": "[survey]\naws_access_key_id = test\naws_secret_access_key = very-secret\n",
        "AWS_CONFIG_FILE": f"[profile survey]\nregion = us-east-1\nendpoint_url = {by_options['endpoint_url']}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(name, str(tmp_path / name))
    options = {"storage_options": {"profile": "survey"}}
    wustore.save(work_unit_from(sample("simple"), lazy=True), "s3://bucket/profile.zarr", overwrite=True, **options)
    monkeypatch.setenv("AWS_PROFILE", "survey")
    with wustore.open_reader("s3://bucket/profile.zarr") as reader:
        assert_same(sample("simple"), reader)


def test_an_object_store_takes_no_password_in_its_url(capsys):
    for suffix in (".zarr", ".h5", ".fits"):
        url = f"s3://user:very-secret@bucket/x{suffix}"
        with pytest.raises(UsageError, match="no user or password") as caught:
            wustore.open_reader(url)
        assert "very-secret" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
        assert main(["info", url]) == 2
    assert "very-secret" not in capsys.readouterr().err


@pytest.fixture
def refusing(web, monkeypatch):
    """A server whose answer to everything is a refusal."""

    def answer(self, *, body):
        text = b"<Error><Code>AccountSuspended</Code></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)

    monkeypatch.setattr(Ranges, "answer", answer)
    return web


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".fits"])
@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_refusal_keeps_its_text(refusing, protocol, suffix):
    options = {"endpoint": refusing.url, "anon": True, "region": "us-east-1"} if protocol == "s3" else {}
    url = f"{refusing.url if protocol == 'http' else 's3://bucket'}/x{suffix}"
    with pytest.raises(PermissionError, match=r"403.*AccountSuspended"):
        wustore.open_reader(url, storage_options=options)


@pytest.mark.parametrize("name", ["x.zarr", "x.h5", "x.fits"])
def test_a_server_without_ranges_is_named(web, tmp_path, name):
    save(sample("chunked"), str(tmp_path / name))
    web.ranges = False
    with pytest.raises(OSError, match="does not answer range requests"), wustore.open_reader(f"{web.url}/{name}") as wu:
        wu.read("science", (slice(0, 1), slice(0, 2), slice(0, 2)))


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".fits"])
def test_a_server_that_never_answers(suffix):
    options = {"connect_timeout": 0.2, "read_timeout": 0.2, "max_retries": 1, "retry_timeout": 1}
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x{suffix}"
        with pytest.raises(TimeoutError, match="did not answer in time"):
            wustore.open_reader(url, storage_options=options)


# --- connections --------------------------------------------------------------------------------------


class Proxy:
    """Passes connections on; cuts the first ones after some bytes of the answer."""

    def __init__(self, address, cuts, after):
        self._address, self._cuts, self._after = address, cuts, after
        self.dropped = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                cut = self.dropped < self._cuts
                self.dropped += cut
                server = socket.create_connection(self._address)
                threading.Thread(target=self._pass, args=(client, server, None), daemon=True).start()
                threading.Thread(
                    target=self._pass, args=(server, client, self._after if cut else None), daemon=True
                ).start()

    def _pass(self, source, target, limit):
        left = limit
        with contextlib.suppress(OSError):
            while data := source.recv(65536 if left is None else max(left, 1)):
                if left is not None:
                    data, left = data[:left], left - len(data)
                target.sendall(data)
                if left is not None and left <= 0:
                    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self):
        self._listener.close()


@pytest.mark.parametrize("after", [0, 400])
@pytest.mark.parametrize("name", ["x.zarr", "x.h5", "x.fits"])
def test_dropped_connections_are_tried_again(s3, tmp_path, monkeypatch, name, after):
    source = sample("chunked")
    local = save(source, str(tmp_path / name))
    for path in [Path(local)] if Path(local).is_file() else Path(local).rglob("*"):
        if path.is_file():
            put(path, f"dropped/{path.relative_to(tmp_path).as_posix()}")
    proxy = Proxy(s3.address, 1, after)
    with contextlib.closing(proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with wustore.open_reader(f"s3://bucket/dropped/{name}") as reader, wustore.open_reader(local) as expected:
            assert_same(expected, reader)
        assert proxy.dropped == 1


def test_web_connections_are_tried_again(web, tmp_path):
    save(sample("chunked"), str(tmp_path / "x.h5"))
    proxy = Proxy(web.server_address[:2], 2, 0)
    with contextlib.closing(proxy), wustore.open_reader(f"{proxy.url}/x.h5") as reader:
        assert_same(sample("chunked"), reader)
    assert proxy.dropped == 2


def test_nobody_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for name in ("x.zarr", "x.h5", "x.fits"):
            url = f"http://user:very-secret@127.0.0.1:{unused.getsockname()[1]}/{name}?key=very-secret"
            with pytest.raises(ConnectionError, match="connection"):
                wustore.open_reader(url, storage_options={"max_retries": 1})


# --- names and numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:word@host/a.h5?sig=1&b=2", "https://host/a.h5"),
        ("cannot get 'http://h/x?k=1' (and http://u:p@h/y)", "cannot get 'http://h/x' (and http://h/y)"),
        ("s3://bucket/a.zarr", "s3://bucket/a.zarr"),
        ("/local/what?.fits", "/local/what?.fits"),
        ("http://user:a@b@host/x", "http://host/x"),
        ("http://user:a/b?c#d@e@host:80/x", "http://host:80/x"),
        ("http://token@host/a@b", "http://host/a@b"),
        ("s3://bucket/a@b.zarr", "s3://bucket/a@b.zarr"),
        ("http://host:8080/a@b and http://[::1]:80/c@d", "http://host:8080/a@b and http://[::1]:80/c@d"),
        ("see https://host/x#token=1, or 'zip://x.zip::http://u:p@h/y'", "see https://host/x, or 'zip://h/y'"),
        ("://", "://"),
    ],
)
def test_what_is_shown_of_a_url(text, expected):
    assert remote.redact(text) == expected


def test_what_is_shown_takes_time_with_the_length_only():
    """A call for each URL, and none for what is no URL: steps are counted, not seconds."""
    steps = []
    long = "a" * 100_000 + "http://u:p@h " * 1000 + ":" * 100_000
    sys.setprofile(lambda frame, event, argument: steps.append(event))
    try:
        shown = remote.redact(long)
    finally:
        sys.setprofile(None)
    assert "p@" not in shown
    assert len(steps) < 50_000


def test_errors_show_no_secret(web):
    secret = f"{web.url.replace('//', '//user:very-secret@')}/x"
    for suffix in (".zarr", ".h5", ".fits"):
        with pytest.raises(StoreNotFoundError) as caught:
            wustore.open_reader(f"{secret}{suffix}?token=very-secret")
        assert "very-secret" not in f"{caught.value} {caught.value!r} {caught.value.__cause__}"


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".fits"])
def test_a_server_that_is_not_there_is_named(suffix, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        url = f"http://user:very-secret@{place}/x{suffix}"
        assert main(["info", url]) == 3
    said = capsys.readouterr().err
    assert place in said
    assert f"x{suffix}" in said
    assert "very-secret" not in said


@pytest.mark.parametrize(("protocol", "package"), [("s3", "obstore"), ("https", "obstore"), ("hf", "fsspec")])
@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".fits"])
def test_missing_packages_are_named(monkeypatch, protocol, package, suffix):
    for name in [name for name in sys.modules if name.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=package):
        wustore.open_reader(f"{protocol}://no-such-place/x{suffix}")


def test_unknown_protocol():
    for suffix in (".zarr", ".h5"):
        with pytest.raises(wustore.errors.BackendError):
            wustore.open_reader(f"nosuch://bucket/x{suffix}")


def test_no_credentials_in_a_store(s3):
    url = save(sample("simple"), "s3://bucket/clean.zarr")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "very-secret"
    for entry in boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix="clean.zarr")["Contents"]:
        body = boto3.client("s3").get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()
        assert b"very-secret" not in body
    assert isinstance(wustore.open_reader(url), type(wustore.open_reader(url)))
    assert isinstance(sample("simple"), MemoryReader)
