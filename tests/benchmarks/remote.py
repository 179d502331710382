"""Object stores with latency: how many requests at a time, and of what size.

Run by hand: ``python tests/benchmarks/remote.py``. Starts moto's S3 server in another process, where each request
waits ``DELAY`` seconds (0.02) first, writes a WorkUnit there as Zarr, HDF5 and FITS and reads it back: all of it with
more and more images in work, one stamp through all images, and one image with requests of other sizes. Needs
moto[server], boto3 and obstore.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DELAY = float(os.environ.get("DELAY", "0.02"))


def serve() -> None:
    """Run the server until standard input ends; print its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    application = server._server.app

    def slow(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        time.sleep(DELAY)
        return application(environ, start)

    server._server.app = slow
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


@contextmanager
def server() -> Iterator[None]:
    """Start the server, and point the S3 libraries to it."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with subprocess.Popen(
        [sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            os.environ["AWS_ENDPOINT_URL"] = process.stdout.readline().strip()
            yield
        finally:
            process.stdin.close()


def load(reader: Any, workers: int) -> int:
    return sum(image.science.nbytes for _, image in reader.images(workers=workers))


def main() -> None:
    import boto3
    from common import N_IMAGES, SIDE, folder, seconds, stack, work_unit

    import wustore
    from wustore.storage.files import RemoteFile
    from wustore.storage.threads import read_ahead
    from wustore.storage.url_requests import CONCURRENCY

    print(f"{N_IMAGES} images of {SIDE} x {SIDE}, {DELAY * 1000:g} ms a request")
    with server(), folder() as place:
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        unit = work_unit(stack())
        for name in ("x.h5", "x.fits"):
            wustore.save(unit, place / name)
            client.upload_file(str(place / name), "bucket", name)
        wustore.save(unit, "s3://bucket/x.zarr", overwrite=True)
        wustore.save(unit, place / "x.zarr")
        for name in ("x.zarr", "x.h5", "x.fits"):
            url = f"s3://bucket/{name}"
            local = seconds(lambda name=name: load(wustore.open_reader(place / name), 2))
            one = 0.0
            for workers in (1, 2, 4, 8, 16):
                taken = seconds(lambda url=url, workers=workers: load(wustore.open_reader(url), workers))
                one = one or taken
                note = f"{one / taken:.2f} x one, {taken / local:.2f} x local"
                print(f"{name} all, {workers:2} images at a time: {taken:.2f} s, {note}", flush=True)
            index = (slice(0, N_IMAGES), slice(SIDE // 2, SIDE // 2 + 21), slice(SIDE // 2, SIDE // 2 + 21))

            def stamp(url: str = url, index: Any = index, **options: Any) -> Any:
                with wustore.open_reader(url, **options) as reader:
                    return reader.read("science", index)

            print(f"{name} open: {seconds(lambda url=url: wustore.open_reader(url)) * 1000:.0f} ms")
            if name == "x.fits":
                print(f"{name} open and stamp: {seconds(stamp) * 1000:.0f} ms", flush=True)
                continue
            for workers in (1, 2, 4, 8, 16, 32):
                taken = seconds(lambda stamp=stamp, workers=workers: stamp(workers=workers))
                print(f"{name} open and stamp, {workers:2} requests in flight: {taken * 1000:.0f} ms", flush=True)
        file = RemoteFile("s3://bucket/x.h5")
        for size in (1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 23, 1 << 24):
            starts = range(0, file.size - size, size)[: max(2, (32 << 20) // size)]

            def fetch(starts: Any = starts, size: int = size) -> None:
                for _ in read_ahead(lambda k: file.read(starts[k], size), range(len(starts)), CONCURRENCY):
                    pass

            rate = len(starts) * size / seconds(fetch) / 1e6
            print(f"requests of {size >> 10:6} KiB, {CONCURRENCY} in flight: {rate:.0f} MB/s", flush=True)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
