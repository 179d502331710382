"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from wustore.errors import UsageError

__all__ = ["format_options", "target_options"]

F = TypeVar("F", bound=Callable[..., Any])

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
