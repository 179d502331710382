"""``wustore preview`` and ``wustore view``: pictures of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wustore.cli._options import STORE, format_option
from wustore.cli._output import progress_bar, report
from wustore.errors import UsageError

__all__ = ["preview", "view"]

_PREVIEW_EXAMPLES = """
\b
Examples:
  wustore preview night.zarr -o night.png
  wustore preview night.zarr -o night.html --stretch asinh
  wustore preview night.fits -o night.png --cut -20 200 --columns 10
"""

_stretch_option = click.option(
    "--stretch",
    type=click.Choice(["zscale", "asinh"]),
    default="zscale",
    show_default=True,
    help="How values become grey: zscale for the sky, asinh for bright sources as well.",
)


@click.command(epilog=_PREVIEW_EXAMPLES)
@click.argument("path", type=STORE)
@click.option("--output", "-o", required=True, metavar="OUT", help="Ending in .png or .html.")
@_stretch_option
@click.option("--cut", type=float, nargs=2, metavar="LOW HIGH", help="Values that become black and white.")
@click.option("--columns", type=click.IntRange(min=1), metavar="N", help="Images in a row of a PNG.")
@format_option
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def preview(
    path: str,
    *,
    output: str,
    stretch: str,
    cut: tuple[float, float] | None,
    columns: int | None,
    format_name: str | None,
    overwrite: bool,
) -> None:
    """Show all images of the store at PATH in one file: a contact sheet, or a page for the browser.

    Each image has its index, filter, time and statistics; masked pixels are red. A PNG has compass and scale bar in
    each image. An HTML file needs nothing else: blink, zoom, and read values, positions and RA and Dec.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops import preview as pictures
    from wustore.ops.convert import refuse_same
    from wustore.stamps.picture import png
    from wustore.storage.staging import Staging

    suffix = Path(output).suffix.lower()
    if suffix not in {".png", ".html"}:
        raise UsageError("the name does not say how to write a preview", path=output, expected=".png or .html")
    if cut is not None and not cut[0] < cut[1]:
        raise UsageError("the cut has no range", where="--cut", expected="LOW below HIGH", found=cut)
    refuse_same(path, output)
    options: dict[str, Any] = {"stretch": stretch, "cut": cut}
    with Staging(output, overwrite=overwrite) as staging:
        with open_reader(path, format=format_name) as reader, progress_bar("reading") as progress:
            n_images = reader.meta.n_images
            if suffix == ".png":
                data = png(pictures.sheet(reader, columns=columns, progress=progress, **options))
            else:
                data = pictures.page(reader, progress=progress, **options).encode()
        staging.path.write_bytes(data)
    report(f"{output}: {n_images} images, {len(data) / 1e6:.1f} MB")


_VIEW_EXAMPLES = """
\b
Examples:
  wustore view night.zarr
On another machine, reached by ssh:
  ssh -L 8642:127.0.0.1:8642 HOST wustore view --port 8642 night.zarr
"""


@click.command(epilog=_VIEW_EXAMPLES)
@click.argument("path", type=STORE)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen at; by default a free one.")
@format_option
def view(path: str, *, port: int, format_name: str | None) -> None:
    """Show the store at PATH in a browser, at full resolution, reading what is looked at.

    Prints the address to open, and serves it until it is interrupted (Ctrl-C). Only programs of this machine reach it,
    and only with the address, which holds a random token; nothing but this store can be read.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.viewer import Viewer

    with open_reader(path, format=format_name) as reader:
        try:
            viewer = Viewer(reader, port)
        except OSError as error:
            raise UsageError("cannot listen at this port", where="--port", found=f"{port}: {error.strerror}") from error
        with viewer:
            click.echo(viewer.address)
            viewer.run()
