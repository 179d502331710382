"""``wustore images``, ``header``, ``config`` and ``table``: what a store holds, as tables and text."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import click

from wustore.cli._options import STORE, format_option, json_option, workers_option
from wustore.cli._output import columns, csv_text, json_text, progress_bar
from wustore.errors import UsageError

__all__ = ["config", "header", "images", "table"]

_IMAGES_EXAMPLES = """
\b
Examples:
  wustore images night.zarr
  wustore images night.fits --csv > night.csv
  wustore images night.zarr --no-pixels --json | jq '.[].filter'
"""


@click.command(epilog=_IMAGES_EXAMPLES)
@click.argument("path", type=STORE)
@format_option
@click.option("--no-pixels", is_flag=True, help="Read metadata only: no sky, no masked pixels, no PSF width.")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@workers_option
def images(
    path: str, *, format_name: str | None, no_pixels: bool, as_json: bool, as_csv: bool, workers: int | None
) -> None:
    """List the images of the store at PATH: one row an image.

    Time as MJD and ISO 8601 (UTC), filter and visit if the table has them, size, masked pixels [%], median and
    noise of the sky (1.4826 times the median absolute deviation), FWHM of the PSF [pixel], RA and Dec of the centre
    [deg, ICRS]. What is not known is null, or empty.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.images import image_facts

    _one_of(**{"--json": as_json, "--csv": as_csv})
    with open_reader(path, format=format_name) as reader, progress_bar("reading") as progress:
        rows = list(image_facts(reader, pixels=not no_pixels, workers=workers, progress=progress))
    if as_json:
        click.echo(json_text(rows))
    elif as_csv:
        click.echo(csv_text(rows))
    else:
        click.echo("\n".join(columns(_HEADS, [_cells(row) for row in rows])))


_HEADS = ("image", "MJD", "date (UTC)", "filter", "visit", "y", "x", "masked", "sky", "noise", "FWHM", "RA", "Dec")
_FORMATS = {
    "mjd": "{:.6f}",
    "masked_percent": "{:.2f}%",
    "sky_median": "{:.5g}",
    "sky_noise": "{:.4g}",
    "psf_fwhm": "{:.2f}",
    "ra": "{:.5f}",
    "dec": "{:.5f}",
}


def _cells(row: Mapping[str, Any]) -> list[str]:
    return ["-" if value is None else _FORMATS.get(key, "{}").format(value) for key, value in row.items()]


def _one_of(**flags: bool) -> None:
    given = [name for name, is_given in flags.items() if is_given]
    if len(given) > 1:
        raise UsageError(" and ".join(given), hint="Leave out all but one.")


_HEADER_EXAMPLES = """
\b
Examples:
  wustore header night.zarr
  wustore header night.fits --image 3
"""


@click.command(epilog=_HEADER_EXAMPLES)
@click.argument("path", type=STORE)
@format_option
@click.option("--image", "number", type=int, metavar="I", help="The HDUs of image I, from 0; else the primary HDU.")
@json_option
def header(path: str, *, format_name: str | None, number: int | None, as_json: bool) -> None:
    """Print FITS header cards as they were imported, character for character.

    A store that keeps no FITS reconstruction data (the capsule) has the cards of its WCS only.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.images import header_cards

    with open_reader(path, format=format_name) as reader:
        found = list(header_cards(reader, number))
    if as_json:
        click.echo(json_text([{"hdu": name, "cards": _split(cards)} for name, cards in found]))
        return
    for name, cards in found:
        click.echo(f"# {name}")
        click.echo("\n".join(card.rstrip() for card in _split(cards)))


def _split(cards: str) -> list[str]:
    return [cards[k : k + 80] for k in range(0, len(cards), 80)]


@click.command(
    epilog="""
\b
Examples:
  wustore config night.zarr > search.yaml
  wustore config night.fits --json
"""
)
@click.argument("path", type=STORE)
@format_option
@json_option
def config(path: str, *, format_name: str | None, as_json: bool) -> None:
    """Print the search configuration as YAML that KBMOD reads."""
    from wustore.backends.registry import open_reader
    from wustore.compat.yaml import dump_mapping

    with open_reader(path, format=format_name) as reader:
        values = reader.meta.configuration
    if values is None:
        raise UsageError("the store holds no configuration", path=path, hint="wustore info shows what it holds.")
    click.echo(json_text(dict(values)) if as_json else dump_mapping(dict(values)).rstrip("\n"))


@click.command(
    epilog="""
\b
Examples:
  wustore table night.zarr > night.ecsv
  wustore table night.fits --csv
"""
)
@click.argument("path", type=STORE)
@format_option
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, without types and units.")
def table(path: str, *, format_name: str | None, as_json: bool, as_csv: bool) -> None:
    """Print the table of the constituent images as ECSV, CSV or JSON, a row for each of them."""
    from wustore.backends.registry import open_reader

    _one_of(**{"--json": as_json, "--csv": as_csv})
    with open_reader(path, format=format_name) as reader:
        constituents = reader.meta.constituents
    cells = {column.name: _values(column) for column in constituents.columns}
    rows = [{name: values[k] for name, values in cells.items()} for k in range(constituents.n_rows)]
    if as_json:
        click.echo(json_text(rows))
    elif as_csv:
        click.echo(csv_text(rows))
    else:
        click.echo(_ecsv(constituents).rstrip("\n"))


def _values(column: Any) -> list[Any]:
    values = column.values.tolist()
    if column.mask is None:
        return list(values)
    return [None if masked else value for value, masked in zip(values, column.mask.tolist(), strict=True)]


def _ecsv(constituents: Any) -> str:
    """Return the table as ECSV; WCSes and other objects as text."""
    from astropy.table import MaskedColumn, Table

    found = Table(meta=dict(constituents.meta))
    for column in constituents.columns:
        values: Any = column.values
        if column.kind != "plain":
            values = [
                "" if value is None else value if isinstance(value, str) else json_text(value) for value in values
            ]
        masked = {} if column.mask is None else {"mask": column.mask}
        kind = type(found).Column if column.mask is None else MaskedColumn
        found[column.name] = kind(values, unit=column.unit, description=column.description, **masked)
    text = io.StringIO()
    found.write(text, format="ascii.ecsv")
    return text.getvalue()
