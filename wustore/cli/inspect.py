"""``wustore info``: what a store holds, from its metadata alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.cli._options import STORE, format_option, json_option, over
from wustore.cli._output import columns, fitted, json_text, report, say, size_text
from wustore.cli._run import INCOMPLETE, OK, error_text, exit_code
from wustore.errors import FormatError, IncompleteError, UsageError, WuStoreError
from wustore.format import tagged_json
from wustore.model.meta import LAYERS, Meta
from wustore.model.select import FILTER_COLUMNS, image_column

__all__ = ["facts", "info"]

_EXAMPLES = """
\b
Examples:
  wustore info night.zarr
  wustore info night.fits --json | jq .layers.science
  wustore info --table season/*.zarr
"""


@click.command(epilog=_EXAMPLES)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=STORE)
@format_option
@click.option("--table", "as_table", is_flag=True, help="Print one line for each PATH.")
@json_option
@click.option("--continue-on-error", is_flag=True, help="Go on with the next PATH after one that failed.")
def info(
    paths: tuple[str, ...], *, format_name: str | None, as_table: bool, as_json: bool, continue_on_error: bool
) -> int:
    """Say what the store at PATH holds, without reading a pixel.

    Exits 4 for a conversion that has not finished, saying how far it is. With --json prints one document for each
    PATH; keys that a store has no value for are null.
    """
    if as_table:
        if as_json:
            raise UsageError("--table and --json", where="--table", hint="Leave out one of the two.")
        return _table(paths, format_name, continue_on_error=continue_on_error)

    def one(path: str) -> int:
        if len(paths) > 1 and not as_json and path != paths[0]:
            click.echo()
        return _show(path, format_name, as_json=as_json)

    return over([(path,) for path in paths], one, jobs=1, continue_on_error=continue_on_error, done="shown")


def _show(path: str, format_name: str | None, *, as_json: bool) -> int:
    from wustore.backends.registry import open_reader

    try:
        with open_reader(path, format=format_name) as reader:
            found = facts(reader)
    except IncompleteError as error:
        done = _progress(path)
        error.hint = done.pop("hint", error.hint)
        unfinished = {"path": path, "complete": False, "state": error.what, "found": error.found, "hint": error.hint}
        unfinished |= done
        if as_json:
            click.echo(json_text({key: None if value is None else value for key, value in unfinished.items()}))
        else:
            click.echo("\n".join(fitted(_lines(unfinished))))
        say(f"wustore: error: {error}")
        return INCOMPLETE
    click.echo(json_text(found) if as_json else "\n".join(fitted(_lines(found))))
    return OK


def _table(paths: tuple[str, ...], format_name: str | None, *, continue_on_error: bool) -> int:
    """Print one line for each store; return the largest exit code."""
    from wustore.backends.registry import open_reader

    rows, codes = [], [OK]
    for path in paths:
        try:
            with open_reader(path, format=format_name) as reader:
                found = facts(reader)
        except (WuStoreError, OSError) as error:
            say(f"wustore: error: {error_text(error)}")
            codes.append(exit_code(error))
            if not continue_on_error:
                break
            continue
        shape = found["image_shape"]
        size = _inline(shape) if isinstance(shape, list) else f"up to {_inline(shape['largest'])}"
        field = found["field"] or {}
        rows.append(
            [
                path,
                found["format"],
                str(found["n_images"]),
                size,
                (found["times"]["first_date"] or "-")[:16],
                (found["times"]["last_date"] or "-")[:16],
                ",".join(found["filters"]) or "-",
                f"{field['ra']:.4f}" if field else "-",
                f"{field['dec']:.4f}" if field else "-",
                "-" if found["bytes"] is None else size_text(found["bytes"]),
            ]
        )
    heads = ("path", "format", "images", "size (y, x)", "first", "last", "filters", "RA", "Dec", "bytes")
    click.echo("\n".join(columns(heads, rows)))
    total = sum(int(row[2]) for row in rows)
    report(f"{len(rows)} of {len(paths)} stores, {total} images")
    return max(codes)


def _progress(path: str) -> dict[str, Any]:
    """Return how far an unfinished conversion is, and what is to be done; nothing if it is not planned yet."""
    from wustore.ops.plans import parts_left, progress_of

    try:
        written, images = progress_of(path)
        left, parts = parts_left(path)
    except WuStoreError:
        return {}
    done: dict[str, Any] = {"images_written": written, "n_images": images}
    if parts > 1:
        done |= {"parts": parts, "parts_left": left}
        each = f"wustore part {path} {left[0] if len(left) == 1 else 'K'}"
        steps = f"{each}{' for each K of parts_left' if len(left) > 1 else ''}, then " if left else ""
        done["hint"] = f"Run {steps}wustore finish {path}; or the same conversion again with --resume."
    return done


def facts(reader: Reader) -> dict[str, Any]:
    """Return what ``wustore info`` shows of an open store, keys in the order to show them."""
    meta = reader.meta
    described = dict(reader.describe())
    of_layers = described.pop("layers", {})
    described.pop("chunks", None)  # shown with the layers
    sizes = _sizes(reader.path)
    total = sum(sizes.values()) if sizes else None
    if reader.format == "sharded-fits":
        total = sum(Path(place).stat().st_size for place in reader.places() if Path(place).is_file()) or None
    document = reader.document() or {}
    found: dict[str, Any] = {
        "path": str(reader.path),
        "format": reader.format,
        "version": document.get("version"),
        "complete": True,
        "bytes": described.pop("bytes", total),
        "n_images": meta.n_images,
        "image_shape": _shapes(meta.image_shape),
        "psf_shape": _shapes(meta.psf_shape),
        "times": _times(meta),
        "filters": sorted({str(name) for name in image_column(meta, FILTER_COLUMNS) if name is not None}),
        "wcs": meta.wcs is not None,
        "image_wcs": _image_wcs(meta),
        "field": _field(meta),
        "observatory": None if meta.observatory is None else list(meta.observatory.geodetic),
        "reprojected": meta.reprojected,
        "reprojection_frame": meta.reprojection_frame,
        "barycentric_distance": meta.barycentric_distance,
        "configuration": _configuration(meta),
        "n_constituents": meta.n_constituents,
        "columns": {column.name: _column_kind(column.kind, column.values) for column in meta.constituents.columns},
        "mask_flags": dict(meta.mask_flags),
        "layers": {
            name: _layer(reader, name, {"bytes": sizes.get(name)} | of_layers.get(name, {}))
            for name in LAYERS
            if meta.has_layer(name)
        },
        "source": dict(meta.source),
        "history": [dict(edit) for edit in meta.history],
    }
    capsule = _capsule(document, sizes.get("fits"))
    return found | described | {"capsule": described.get("capsule") if capsule is None else capsule}


def _sizes(path: object) -> dict[str, int]:
    """Return the bytes on disk: of a file under its name, of a directory by what is right below it."""
    if not isinstance(path, str) or not os.path.lexists(path):
        return {}
    top = Path(path)
    if not top.is_dir():
        return {top.name: top.stat().st_size}
    sizes: Counter[str] = Counter()
    for root, _, names in os.walk(top):
        place = Path(root)
        parts = place.relative_to(top).parts
        sizes[parts[0] if parts else ""] += sum((place / name).stat().st_size for name in names)
    return dict(sizes)


def _shapes(shapes: NDArray[np.int32]) -> list[int] | dict[str, list[int]]:
    """Return the one size (y, x), or the smallest and largest extents if images differ."""
    low, high = shapes.min(axis=0).tolist(), shapes.max(axis=0).tolist()
    return low if low == high else {"smallest": low, "largest": high}


def _times(meta: Meta) -> dict[str, Any]:
    from wustore.ops.images import iso_date

    known = meta.times[np.isfinite(meta.times)]
    first, last = (float(known.min()), float(known.max())) if known.size else (np.nan, np.nan)
    return {
        "first": first if known.size else None,
        "last": last if known.size else None,
        "first_date": iso_date(first),
        "last_date": iso_date(last),
        "missing": int(meta.n_images - known.size),
    }


def _image_wcs(meta: Meta) -> int:
    """Return how many constituents have a WCS of their own."""
    from wustore.stamps.sky import WCS_COLUMN

    column = meta.constituents.get(WCS_COLUMN)
    return 0 if column is None else sum(isinstance(text, str) and bool(text) for text in column.values.tolist())


def _field(meta: Meta) -> dict[str, float] | None:
    """Return centre and size of the first image on the sky; None without a WCS."""
    from wustore.ops.images import field_of
    from wustore.stamps.sky import linked_wcs

    try:
        return field_of(linked_wcs(meta, 0), meta.shape_of("science", 0))
    except (UsageError, FormatError):
        return None


def _configuration(meta: Meta) -> dict[str, int] | None:
    """Return how large the configuration is: its parameters, and the bytes of its JSON text."""
    if meta.configuration is None:
        return None
    return {
        "parameters": len(meta.configuration),
        "bytes": len(tagged_json.dumps(dict(meta.configuration)).encode(errors="surrogatepass")),
    }


def _column_kind(kind: str, values: NDArray[Any]) -> str:
    return str(values.dtype) if kind == "plain" else kind


def _layer(reader: Reader, name: str, described: Mapping[str, Any]) -> dict[str, Any]:
    meta = reader.meta
    shapes = (meta.psf_shape if name == "psf" else meta.image_shape).tolist()
    in_memory = sum(
        height * width * dtype.itemsize
        for (height, width), dtype in zip(shapes, meta.dtypes[name], strict=True)
        if dtype is not None
    )
    layer: dict[str, Any] = {
        "dtype": str(meta.layer_dtype(name)),
        "shape": list(meta.layer_shape(name)),
        "chunks": list(reader.chunks(name)),
        "missing": sum(dtype is None for dtype in meta.dtypes[name]),
        "bytes_in_memory": in_memory,
        **described,
    }
    stored = layer["bytes"]
    layer["ratio"] = round(in_memory / stored, 2) if stored else None
    return layer


def _capsule(document: Mapping[str, Any], kept: int | None) -> dict[str, Any] | None:
    """Return what the capsule gives back (form, files, how each was compressed) and the bytes that it takes."""
    capsule = document.get("capsule")
    if not isinstance(capsule, Mapping):
        return None
    listed = capsule.get("files")
    # Opaque here, so nothing about it is taken for granted.
    files = [_capsule_file(entry) for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    sizes = [file["size"] for file in files if isinstance(file["size"], int)]
    return {"form": capsule.get("form"), "files": files, "bytes_of_files": sum(sizes), "bytes": kept}


def _capsule_file(entry: Mapping[str, Any]) -> dict[str, Any]:
    outer = entry.get("outer")
    how = outer if isinstance(outer, Mapping) else {}
    file = {key: entry.get(key) for key in ("name", "size", "sha256")}
    return file | {"compressed": how.get("format"), "compressed_file_exact": how.get("exact")}


# --- for people -----------------------------------------------------------------------------------------

_INDENT = "  "
_ROUNDED = {"ra", "dec", "width", "height", "pixel_scale"}
_LISTED = 8
"""Entries of a list that are shown: a sharded set has a file for every image."""


def _lines(found: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield a line per fact, nested ones indented; what is empty or not there is left out."""
    shown = {key: value for key, value in found.items() if value is not None and value not in ({}, [])}
    width = max((len(key) for key, value in shown.items() if not _nests(value)), default=0)
    for key, value in shown.items():
        if key == "layers" and depth == 0:
            yield key
            yield from (f"{_INDENT}{name:<8}  {_layer_line(layer)}" for name, layer in value.items())
        elif isinstance(value, Mapping) and _nests(value):
            yield f"{_INDENT * depth}{key}"
            yield from _lines(value, depth + 1)
        elif isinstance(value, list) and _nests(value):
            yield f"{_INDENT * depth}{key}"
            yield from (f"{_INDENT * (depth + 1)}{_inline(item)}" for item in value[:_LISTED])
            if len(value) > _LISTED:
                yield f"{_INDENT * (depth + 1)}and {len(value) - _LISTED} more (--json lists them all)"
        else:
            yield f"{_INDENT * depth}{key:<{width}}  {_inline(value, key)}"


def _layer_line(layer: Mapping[str, Any]) -> str:
    line = f"{layer['dtype']} {_inline(layer['shape'])} in chunks of {_inline(layer['chunks'])}"
    line += f", {size_text(layer['bytes_in_memory'])}"
    if layer["bytes"]:
        line += f" -> {size_text(layer['bytes'])} ({layer['ratio']} x)"
    if layer["missing"]:
        line += f", missing in {layer['missing']} images"
    known = {"dtype", "shape", "chunks", "bytes_in_memory", "bytes", "ratio", "missing"}
    others = _inline({key: value for key, value in layer.items() if key not in known})
    return f"{line}, {others}" if others else line


def _nests(value: Any) -> bool:
    """Return whether a value needs lines of its own: too long for one, or a mapping of mappings."""
    if isinstance(value, Mapping):
        return any(isinstance(item, Mapping) for item in value.values()) or len(_inline(value)) > 90
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _inline(value: Any, key: str = "") -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key.startswith("bytes"):
        return size_text(value)
    if isinstance(value, float):
        return f"{value:.9g}" if key in _ROUNDED else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_inline(item, name)}" for name, item in value.items() if item is not None)
    if key == "parts_left":
        return _ranges(value)
    if key == "observatory":
        return "latitude {:.9g}, longitude {:.9g} deg, height {:.9g} m".format(*value)
    if isinstance(value, list | tuple):
        numbers = all(isinstance(item, int) for item in value)
        return (" x " if numbers else ", ").join(_inline(item) for item in value)
    return str(value)


def _ranges(numbers: list[int]) -> str:
    """Return sorted numbers as a job array takes them: ``0-3,7``."""
    ends = [k for k, number in enumerate(numbers) if numbers[k + 1 : k + 2] != [number + 1]]
    starts = [0, *(end + 1 for end in ends)]
    pairs = [(numbers[start], numbers[end]) for start, end in zip(starts, ends, strict=False)]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs)
