"""Stamps and coadds as files: .npy, .npz, FITS, Zarr, or a PNG contact sheet."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError
from wustore.stamps.results import Coadds, Stamps
from wustore.storage.staging import Staging

__all__ = ["SUFFIXES", "write_stamps"]

Arrays = dict[str, tuple[tuple[str, ...], NDArray[Any]]]
"""Name to dimension names and values."""

_SHEET_PIXELS = 4_000_000
"""Largest contact sheet [screen pixels]: more rows than anyone looks at."""


def write_stamps(
    stamps: Stamps | Coadds,
    path: str | os.PathLike[str],
    *,
    coadd: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write stamps, or their coadd, in the format that the name's ending says.

    ``.npy`` holds the science stamps (or the coadd) alone, ``.png`` a picture of them: a row for each position or
    trajectory, the first row of pixels at the bottom. The others hold every layer with centres, times and image
    indices: ``.npz`` by name, ``.fits`` one HDU each, ``.zarr`` one array each with named dimensions (xarray opens it).

    Parameters
    ----------
    stamps
        What `wustore.stamps.extract` gave, stamps or coadds.
    path
        Where to write; it appears when it is whole.
    coadd
        Kind of coadd (`wustore.stamps.coadd.KINDS`) to write instead of the stamps at each time.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    UsageError
        Where the ending is unknown, or the science layer that the format needs is not there.
    StoreExistsError, StoreNotFoundError, OSError
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise UsageError("the name does not say how to write stamps", path=path, expected=", ".join(SUFFIXES))
    arrays = _arrays(stamps, coadd)
    staging = Staging(path, overwrite=overwrite)
    try:
        _WRITERS[suffix](arrays, staging.path)
        staging.commit()
    except BaseException:
        staging.abort()
        raise


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
    arrays["centre_x"] = ((*of_stamp, "time"), stamps.x)
    arrays["centre_y"] = ((*of_stamp, "time"), stamps.y)
    arrays["mjd"] = (("time",), stamps.times)
    arrays["image"] = (("time",), stamps.images)
    return arrays


def _picture(arrays: Mapping[str, Any]) -> NDArray[Any]:
    """Return the coadd or the science stamps: what a format with a single array shows."""
    for name in ("coadd", "science"):
        if name in arrays:
            values: NDArray[Any] = arrays[name][1]
            return values
    raise UsageError("this format shows the science layer, which is not there", hint="Write .npz, .fits or .zarr.")


def _write_npy(arrays: Arrays, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, _picture(arrays))


def _write_npz(arrays: Arrays, path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: values for name, (_, values) in arrays.items()})  # type: ignore[arg-type]


def _write_fits(arrays: Arrays, path: Path) -> None:
    from astropy.io import fits

    hdus = fits.HDUList([fits.PrimaryHDU()])
    for name, (dims, values) in arrays.items():
        data = values.astype(np.uint8) if values.dtype == bool else values
        hdu = fits.ImageHDU(data, name=name.upper())
        hdu.header["AXES"] = (" ".join(dims), "axes, the slowest first (NAXISn, ..., NAXIS1)")
        hdus.append(hdu)
    hdus.writeto(path, checksum=True)


def _write_zarr(arrays: Arrays, path: Path) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    group = zarr.create_group(path)
    for name, (dims, values) in arrays.items():
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
    with warnings.catch_warnings():  # consolidated metadata is no part of the Zarr v3 specification yet
        warnings.simplefilter("ignore", UserWarning)
        zarr.consolidate_metadata(path)


_CHUNK_BYTES = 4 << 20
"""Size of a chunk of stamps [bytes] before compression: read in about 10 ms."""


def _write_png(arrays: Arrays, path: Path) -> None:
    from wustore.stamps.picture import contact_sheet, png

    picture = _picture(arrays)
    n_columns = picture.shape[-3] if "science" in arrays else _columns_for(picture.shape)
    planes = picture.reshape(-1, *picture.shape[-2:])
    if not len(planes):
        raise UsageError("there is no stamp to show", expected="at least 1", found=0)
    zoom = max(min(8, 84 // max(picture.shape[-1], 1)), 1)
    if len(planes) * picture.shape[-1] * picture.shape[-2] * zoom**2 > _SHEET_PIXELS:
        zoom = 1
    path.write_bytes(png(contact_sheet(list(planes), columns=n_columns, zoom=zoom)))


def _columns_for(shape: tuple[int, ...]) -> int:
    return max(int(np.ceil(np.sqrt(np.prod(shape[:-2])))), 1)


_WRITERS: dict[str, Callable[[Arrays, Path], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".fits": _write_fits,
    ".zarr": _write_zarr,
    ".png": _write_png,
}

SUFFIXES = tuple(_WRITERS)
