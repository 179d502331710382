"""fsspec (s3fs) against obstore, and wustore against the better one: the same bytes from moto's S3 server.

Run by hand: ``python tests/benchmarks/url_stacks.py``. Each request waits ``DELAY`` seconds (0.02) first, as in
`remote`. Three patterns, each timed ``ROUNDS`` times in turn, the fastest counts: what opening a store asks for (two
objects, one after the other), a stamp through 100 images (the end of each object, then a range of it), all bytes of 64
objects of 1 MiB, and writing these. Then a whole WorkUnit, against zarr-python with the Store of either library; and
opening 1000 images, as a Zarr store and as an indexed FITS file. Processor time is that of this process, so without the
server. Needs moto[server], boto3, s3fs and obstore.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import folder
from remote import DELAY, server

IMAGES, SIZE, ROUNDS, TAIL, CHUNK = 100, 1 << 20, 3, 1000, 1 << 16
WHOLE = 64
IN_FLIGHT = 16


def measured(works: dict[str, Callable[[], Any]], what: str) -> None:
    """Run each work in turn, and print the fastest of its rounds."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(ROUNDS):
        for name, work in works.items():
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            work()
            taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            best[name] = min(best.get(name, (taken, used)), (taken, used))
    for name, (taken, used) in best.items():
        print(f"{what:28} {name:11} {taken * 1000:7.0f} ms, {used * 1000:6.0f} ms of processor time", flush=True)


def keys_of(images: int) -> list[str]:
    return [f"data/{i}" for i in range(images)]


def s3fs_works(system: Any) -> dict[str, Callable[[], Any]]:
    def stamp() -> None:
        paths = [f"bucket/{key}" for key in keys_of(IMAGES)]
        system.cat_ranges(paths, [-TAIL] * IMAGES, [None] * IMAGES, batch_size=IN_FLIGHT)
        system.cat_ranges(paths, [CHUNK] * IMAGES, [2 * CHUNK] * IMAGES, batch_size=IN_FLIGHT)

    def load() -> None:
        system.cat([f"bucket/{key}" for key in keys_of(WHOLE)], batch_size=IN_FLIGHT)

    def write() -> None:
        system.pipe({f"bucket/{key}": bytes(SIZE) for key in keys_of(WHOLE)}, batch_size=IN_FLIGHT)

    return {
        "open": lambda: [system.cat_file(f"bucket/{key}") for key in keys_of(2)],
        "stamp": stamp,
        "load": load,
        "write": write,
    }


def obstore_works(store: Any) -> dict[str, Callable[[], Any]]:
    import obstore

    def spread(work: Callable[[str], Any], keys: list[str]) -> None:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(work, keys))

    def stamp_of(key: str) -> None:
        bytes(obstore.get(store, key, options={"range": {"suffix": TAIL}}).bytes())
        bytes(obstore.get_range(store, key, start=CHUNK, end=2 * CHUNK))

    return {
        "open": lambda: [bytes(obstore.get(store, key).bytes()) for key in keys_of(2)],
        "stamp": lambda: spread(stamp_of, keys_of(IMAGES)),
        "load": lambda: spread(lambda key: bytes(obstore.get(store, key).bytes()), keys_of(WHOLE)),
        "write": lambda: spread(lambda key: obstore.put(store, key, bytes(SIZE)), keys_of(WHOLE)),
    }


def wustore_works() -> dict[str, Callable[[], Any]]:
    from wustore.storage.stores import writable_keys
    from wustore.storage.threads import in_threads

    keys = writable_keys("s3://bucket")

    def stamp_of(key: str) -> None:
        keys.get_tail(key, TAIL)
        keys.get_ranges(key, [(CHUNK, CHUNK)])

    return {
        "open": lambda: [keys.get(key) for key in keys_of(2)],
        "stamp": lambda: in_threads(stamp_of, keys_of(IMAGES), IN_FLIGHT),
        "load": lambda: in_threads(keys.get, keys_of(WHOLE), IN_FLIGHT),
        "write": lambda: in_threads(lambda key: keys.set(key, bytes(SIZE)), keys_of(WHOLE), IN_FLIGHT),
    }


def put(client: Any, place: Path, *names: str) -> None:
    """Copy files to the server; those of a directory, too."""
    for name in names:
        for path in [place / name] if (place / name).is_file() else sorted((place / name).rglob("*")):
            if path.is_file():
                client.upload_file(str(path), "bucket", path.relative_to(place).as_posix())


def whole_work_unit(client: Any, place: Path) -> None:
    """Time loading all layers of a WorkUnit."""
    import numpy as np
    import zarr
    from common import stack, work_unit
    from obstore.store import S3Store
    from zarr.storage import FsspecStore, ObjectStore

    import wustore

    work_unit(stack(16, 1024)).to_zarr(place / "whole.zarr", profile="portable")
    put(client, place, "whole.zarr")
    options = {"allow_http": True}

    def arrays(store: Any) -> list[Any]:
        group = zarr.open_group(store, mode="r")
        return [np.asarray(group[name][:]) for name in ("science", "variance", "mask") if name in group]

    def ours() -> list[Any]:
        loaded = wustore.open("s3://bucket/whole.zarr")
        loaded.load_images()
        return loaded.im_stack.sci

    measured(
        {
            "FsspecStore": lambda: arrays(FsspecStore.from_url("s3://bucket/whole.zarr", read_only=True)),
            "ObjectStore": lambda: arrays(
                ObjectStore(S3Store("bucket", prefix="whole.zarr", client_options=options), read_only=True)
            ),
            "wustore": ours,
        },
        "16 images of 1024 x 1024",
    )


def thousand_images(client: Any, place: Path) -> None:
    """Time opening a store of 1000 images at a URL, and an indexed FITS file."""
    import numpy as np
    from astropy.wcs import WCS

    import wustore

    planes = [np.ones((4, 4), np.float32)] * 1000
    stack = wustore.ImageStack(times=60000 + np.arange(1000.0), sci=planes, var=planes)
    unit = wustore.WorkUnit(stack, wustore.SearchConfiguration(), wcs=WCS(naxis=2))
    wustore.save(unit, place / "k.zarr")
    unit.to_fits(place / "k.fits")
    wustore.index(place / "k.fits")
    # Of the store only what opening reads.
    put(client, place, "k.zarr/zarr.json", "k.zarr/packed/c.0", "k.fits", "k.fits.wuindex")

    def open_it(name: str) -> None:
        with wustore.open(f"s3://bucket/{name}") as found:
            assert len(found) == 1000

    measured({name: lambda name=name: open_it(name) for name in ("k.zarr", "k.fits")}, "lazy open, 1000 images")


def main() -> None:
    import boto3
    import obstore.store
    import s3fs

    print(f"{DELAY * 1000:g} ms a request, {IN_FLIGHT} in flight")
    with server():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for key in keys_of(IMAGES):
            client.put_object(Bucket="bucket", Key=key, Body=bytes(SIZE))
        stacks = {
            "s3fs": s3fs_works(s3fs.S3FileSystem(use_listings_cache=False)),
            "obstore": obstore_works(obstore.store.S3Store("bucket", client_options={"allow_http": True})),
            "wustore": wustore_works(),
        }
        for pattern, what in (
            ("open", "2 objects in turn"),
            ("stamp", f"stamp through {IMAGES} images"),
            ("load", f"{WHOLE} objects of 1 MiB"),
            ("write", f"{WHOLE} objects written"),
        ):
            measured({name: works[pattern] for name, works in stacks.items()}, what)
        with folder() as place:
            whole_work_unit(client, place)
            thousand_images(client, place)


if __name__ == "__main__":
    main()
