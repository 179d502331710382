"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from wustore.errors import UsageError

__all__ = ["MOMENT", "Number", "format_options", "target_options"]

F = TypeVar("F", bound=Callable[..., Any])


class Number(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """A number that may have a unit, such as ``10arcsec``.

    Parameters
    ----------
    unit
        That it is in without one, and that it is converted to.
    """

    def __init__(self, unit: str) -> None:
        self.name = unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number in the unit of the option."""
        from wustore.model.units import in_unit

        try:
            return float(in_unit(value, self.name, ""))
        except UsageError as error:
            self.fail(f"{value!r}: {error.what}; expected {error.expected}", param, ctx)


class _Moment(click.ParamType):  # type: ignore[type-arg]
    """A time: MJD or ISO 8601."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the time as MJD."""
        from wustore.model.units import mjd

        try:
            return float(mjd(value))
        except UsageError:
            self.fail(f"{value!r} is no time; expected MJD or a date such as 2024-10-24T12:00", param, ctx)


MOMENT = _Moment()

_TARGET_OPTIONS = (
    click.option("--format", "target_format", metavar="NAME", help="Format of DST; by default its name says it."),
    click.option("--from-format", "source_format", metavar="NAME", help="Format of SRC; by default from its content."),
    click.option("--profile", metavar="NAME", help="Compression of a Zarr or HDF5 DST: compact, portable, fast, none."),
    click.option("--layout", metavar="NAME", help="Chunking of a Zarr or HDF5 DST: images, cutouts, balanced."),
    click.option(
        "--option",
        "-o",
        "others",
        metavar="NAME=VALUE",
        multiple=True,
        help="An option of DST's format, such as compression_type=GZIP_2 for FITS. May be repeated.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace DST where it exists; it stays until the new one is whole."),
    click.option("--no-capsule", is_flag=True, help="Leave out what gives back the identical FITS files."),
)


def target_options(command: F) -> F:
    """Add the options that say what DST becomes."""
    for option in reversed(_TARGET_OPTIONS):
        command = option(command)
    return command


def format_options(profile: str | None, layout: str | None, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of DST's format; a ``NAME=VALUE`` whose value is JSON is taken as such, else as text.

    Raises
    ------
    UsageError
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError("an option of the format is not NAME=VALUE", where="--option", found=pair)
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options | {name: value for name, value in (("profile", profile), ("layout", layout)) if value is not None}
