"""The command line ``wustore``: one module a group of commands, imported when one of them is called.

A command is a `click.Command` in a module of this package and a line in `COMMANDS`; nothing else. Data goes to
standard output, everything else to standard error. Exit codes: `wustore.cli._run`.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import click
from click.shell_completion import CompletionItem, shell_complete

from wustore._version import __version__
from wustore.cli._options import add_common_options
from wustore.cli._run import guarded

__all__ = ["COMMANDS", "COMPLETION", "main"]

COMPLETION = "_WUSTORE_COMPLETE"
"""Variable of the environment by which the script of ``wustore completion`` asks for completions."""

COMMANDS: dict[str, tuple[str, str]] = {
    "info": ("inspect:info", "Say what stores hold, without reading a pixel."),
    "images": ("show:images", "List the images: time, filter, sky, PSF, position; as a table, CSV or JSON."),
    "header": ("show:header", "Print FITS header cards as they were imported."),
    "config": ("show:config", "Print the search configuration as YAML."),
    "table": ("show:table", "Print the table of constituent images as ECSV, CSV or JSON."),
    "convert": ("convert:convert", "Convert WorkUnits into another format; nothing is lost."),
    "plan": ("convert:plan", "Divide a conversion into parts for a cluster."),
    "part": ("convert:part", "Write one part of a planned conversion."),
    "finish": ("convert:finish", "End a planned conversion: check it and let the store appear."),
    "index": ("convert:index", "Index FITS, so that it is read at a URL without converting it."),
    "stamp": ("cut:stamp", "Cut stamps through time, at a position or along trajectories."),
    "cutout": ("cut:cutout", "Write a smaller WorkUnit: a window, some of the images, or both."),
    "export": ("cut:export", "Write FITS for KBMOD's command-line programs."),
    "preview": ("picture:preview", "Show all images in one PNG or HTML file."),
    "view": ("picture:view", "Show a store in a browser of this machine, at full resolution."),
    "append": ("edit:append", "Append images to a Zarr or HDF5 store; existing chunks stay as they are."),
    "repack": ("edit:repack", "Write a store again in another profile or layout."),
    "drop": ("edit:drop", "Remove layers, or the FITS reconstruction data, from a store."),
    "migrate": ("edit:migrate", "Write a store of an older version of the format in the current one."),
    "diff": ("check:diff", "Compare two stores bit for bit, or within a tolerance, whatever their formats."),
    "verify": ("check:verify", "Read everything and check it against its checksums."),
    "checksum": ("check:checksum", "Print the sha256 of every file, or write a receipt."),
    "repair": ("check:repair", "Save the whole images of a damaged store into a new one."),
    "clean": ("check:clean", "Remove what killed processes left behind."),
    "bench": ("measure:bench", "Measure formats and profiles on your own data."),
    "formats": ("about:formats", "List the formats, built in and plugged in."),
    "doctor": ("about:doctor", "Say what this installation can do: versions, codecs, extras, limits."),
    "completion": ("about:completion", "Print the script that completes commands in bash, zsh or fish."),
    "demo": ("about:demo", "Show the way from FITS to Zarr and HDF5 and back, in seconds."),
}
"""Name of a command: its ``module:attribute`` below this package, and its line in the overview."""

SECTIONS: dict[str, tuple[str, ...]] = {
    "Look at stores": ("inspect", "show", "picture"),
    "Convert": ("convert",),
    "Take parts": ("cut",),
    "Change stores": ("edit",),
    "Check and repair": ("check",),
    "This installation": ("measure", "about"),
}
"""Headings of the overview, and the modules whose commands stand below each."""


class _LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), attribute)
        return add_common_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}?" if near else "wustore --help lists the commands."
            raise click.UsageError(f"No such command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click would import every command for the line that it shows.
        found = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, modules in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name, line) for name, (place, line) in COMMANDS.items() if place.partition(":")[0] in modules]
                )


_EXIT_CODES = """
Exit codes: 0 ok, 1 differs or invalid, 2 usage, 3 damaged or unreadable data, 4 incomplete;
130 and 143 after SIGINT and SIGTERM.
"""


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="wustore")
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
def cli(*, debug: bool) -> None:
    """Archive format, parallel reader and lossless FITS converter for KBMOD WorkUnits."""


add_common_options(cli)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments
        What follows the program's name; by default that of this process.
    """
    instruction = os.environ.get(COMPLETION)
    if instruction:
        return shell_complete(cli, {}, "wustore", COMPLETION, instruction)
    # At the end nothing need be collected any more: looking through numba's objects takes the interpreter 0.3 s.
    atexit.register(gc.freeze)
    return guarded(cli, arguments)
