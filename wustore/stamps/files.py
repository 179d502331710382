"""Stamps and coadds as files: .npy, .npz, FITS, Zarr, or a PNG contact sheet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError
from wustore.model.quiet import quiet
from wustore.stamps.picture import png
from wustore.stamps.results import Coadds, Stamps
from wustore.storage.staging import Staging

__all__ = ["SUFFIXES", "write_stamps"]

Arrays = dict[str, tuple[tuple[str, ...], NDArray[Any]]]
"""Name to dimension names and values."""


def write_stamps(
    stamps: Stamps | Coadds,
    path: str | os.PathLike[str],
    *,
    coadd: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write stamps, or their coadd, in the format that the name's ending says.

    ``.npy`` holds the science stamps (or the coadd) alone, ``.png`` the picture that `Stamps.sheet` makes. The others
    hold every layer with ids, centres in pixels and on the sky, times, image indices, the WCS of each image and the
    path of the store: ``.npz`` by name, ``.fits`` one HDU each, ``.zarr`` one array each with named dimensions (xarray
    opens it), text in its attributes.

    Parameters
    ----------
    stamps
        What `wustore.stamps.trajectory_stamps` gave, stamps or coadds.
    path
        Where to write; it appears when it is whole.
    coadd
        Kind of coadd (`wustore.stamps.coadd.KINDS`) to write instead of the stamps at each time.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    UsageError
        If the ending is unknown, or the science layer that the format needs is not there.
    StoreExistsError, StoreNotFoundError, OSError
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError("the name does not say how to write stamps", path=path, expected=", ".join(SUFFIXES))
    with Staging(path, overwrite=overwrite) as staging:
        if suffix == ".png":
            made = stamps if coadd is None or isinstance(stamps, Coadds) else stamps.coadds(coadd)
            staging.path.write_bytes(png(made.sheet()))
        else:
            _WRITERS[suffix](_arrays(stamps, coadd), _facts(stamps, coadd), staging.path)


def _facts(stamps: Stamps | Coadds, kind: str | None) -> dict[str, Any]:
    """Return what a file says besides arrays: JSON values."""
    facts: dict[str, Any] = {"source": stamps.source, "radius": stamps.radius}
    kind = stamps.kind if isinstance(stamps, Coadds) else kind
    return facts | ({} if kind is None else {"kind": kind})


def _arrays(stamps: Stamps | Coadds, kind: str | None) -> Arrays:
    of_stamp = ("stamp",) if stamps.x.ndim == 2 else tuple(f"stamp_{k}" for k in range(stamps.x.ndim - 1))
    arrays: Arrays = {}
    if isinstance(stamps, Coadds):
        arrays["coadd"] = ((*of_stamp, "y", "x"), stamps.values)
    elif kind is not None:
        arrays["coadd"] = ((*of_stamp, "y", "x"), stamps.coadd(kind))
    else:
        layers = {"science": stamps.science, "variance": stamps.variance, "mask": stamps.mask}
        for name, values in layers.items():
            if values is not None:
                arrays[name] = ((*of_stamp, "time", "y", "x"), values)
        arrays["inside"] = ((*of_stamp, "time", "y", "x"), stamps.inside)
    ra, dec = stamps.sky()
    texts = [text or "" for text in stamps.wcs] or [""] * len(stamps.times)
    arrays |= {
        "id": (of_stamp, np.asarray(stamps.ids, str) if stamps.ids.dtype.kind in "OSU" else stamps.ids),
        "centre_x": ((*of_stamp, "time"), stamps.x),
        "centre_y": ((*of_stamp, "time"), stamps.y),
        "centre_ra": ((*of_stamp, "time"), ra),
        "centre_dec": ((*of_stamp, "time"), dec),
        "mjd": (("time",), stamps.times),
        "image": (("time",), stamps.images),
        "wcs": (("time",), np.array(texts, str)),
    }
    return arrays


def _picture(arrays: Mapping[str, Any]) -> NDArray[Any]:
    """Return the coadd or the science stamps: what a format with a single array shows."""
    for name in ("coadd", "science"):
        if name in arrays:
            values: NDArray[Any] = arrays[name][1]
            return values
    raise UsageError("this format shows the science layer, which is not there", hint="Write .npz, .fits or .zarr.")


def _write_npy(arrays: Arrays, _: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, _picture(arrays))


def _write_npz(arrays: Arrays, facts: Mapping[str, Any], path: Path) -> None:
    values: dict[str, Any] = {name: np.array(value) for name, value in facts.items()}
    values |= {name: array for name, (_, array) in arrays.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **values)


def _write_fits(arrays: Arrays, facts: Mapping[str, Any], path: Path) -> None:
    from astropy.io import fits

    primary = fits.PrimaryHDU()
    for name, value in facts.items():
        primary.header[name.upper()] = value.encode("ascii", "replace").decode() if isinstance(value, str) else value
    hdus = fits.HDUList([primary])
    for name, (dims, values) in arrays.items():
        if values.dtype.kind == "U":
            text = np.char.encode(values.reshape(-1), "ascii", "replace")
            column = fits.Column(name.upper(), f"{max(text.dtype.itemsize, 1)}A", array=text)
            hdu: Any = fits.BinTableHDU.from_columns([column], name=name.upper())
        else:
            data = values.astype(np.uint8) if values.dtype == bool else values
            hdu = fits.ImageHDU(np.atleast_1d(data), name=name.upper())
            hdu.header["AXES"] = (" ".join(dims), "axes, the slowest first (NAXISn, ..., NAXIS1)")
        hdus.append(hdu)
    hdus.writeto(path, checksum=True)


def _write_zarr(arrays: Arrays, facts: Mapping[str, Any], path: Path) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    # Text is no data type of the Zarr v3 specification yet, so it is in the attributes.
    texts = {name: values.tolist() for name, (_, values) in arrays.items() if values.dtype.kind == "U"}
    group = zarr.create_group(path, attributes={**facts, **texts})
    for name, (dims, values) in arrays.items():
        if name in texts:
            continue
        shape = values.shape
        chunks = tuple(max(size, 1) for size in shape)
        if len(shape) > 3 and values.nbytes > _CHUNK_BYTES:  # some stamps, all their times, to a chunk
            chunks = (max(int(_CHUNK_BYTES * shape[0] // values.nbytes), 1), *chunks[1:])
        array = group.create_array(
            name,
            shape=shape,
            dtype=values.dtype,
            chunks=chunks,
            dimension_names=dims,
            compressors=BloscCodec(cname="zstd", clevel=5, typesize=max(values.dtype.itemsize, 1)),
        )
        array[...] = values
    with quiet():  # consolidated metadata is no part of the Zarr v3 specification yet
        zarr.consolidate_metadata(path)


_CHUNK_BYTES = 4 << 20
"""Size of a chunk of stamps [bytes] before compression: read in about 10 ms."""


_WRITERS: dict[str, Callable[[Arrays, Mapping[str, Any], Path], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".fits": _write_fits,
    ".zarr": _write_zarr,
}

SUFFIXES = (*_WRITERS, ".png")
