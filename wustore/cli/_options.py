"""Options and arguments that several commands share, and commands over several inputs."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from wustore.cli._output import SETTINGS, report, say
from wustore.cli._run import OK, error_text, exit_code
from wustore.errors import UsageError, WuStoreError
from wustore.storage.stores import address_of
from wustore.storage.url import UrlWithOptions, is_remote, options_of, redact

__all__ = [
    "MOMENT",
    "STORE",
    "Number",
    "TargetOptions",
    "add_common_options",
    "format_option",
    "format_options",
    "grouped",
    "json_option",
    "many_options",
    "over",
    "target_options",
    "workers_option",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Store(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.3
    """A path, URL or ``ram:`` name; the shell completes it as a file."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        address = address_of(value, storage_options=SETTINGS.storage_options)
        if SETTINGS.index is None or not is_remote(address):
            return address
        return UrlWithOptions(address, options_of(address), SETTINGS.index)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


STORE = _Store()


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


# --- options of every command ---------------------------------------------------------------------------


def _set(name: str, value: bool) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(context: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given:
            setattr(SETTINGS, name, value)

    return callback


def _storage_option(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> None:
    if given:
        SETTINGS.storage_options = dict(map(_name_and_value, given))


def _index(context: click.Context, parameter: click.Parameter, given: str | None) -> None:
    SETTINGS.index = given


def _name_and_value(pair: str) -> tuple[str, Any]:
    """Return name and value of ``NAME=VALUE``; a value that is JSON is taken as such, else as text."""
    name, equals, text = pair.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError("a storage option is not KEY=VALUE", where="--storage-option", found=redact(name))
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def add_common_options(command: click.Command) -> click.Command:
    """Give a command the options that all of them have, once."""
    if any(parameter.name == "quiet" for parameter in command.params):
        return command
    flags: tuple[tuple[list[str], str, bool, str], ...] = (
        (["--quiet", "-q"], "quiet", True, "No result line, no progress bar; only errors, warnings and data."),
        (["--verbose", "-v"], "verbose", True, "Say what is being done, and how long it took."),
        (["--no-progress"], "progress", False, "No progress bar on a terminal."),
    )
    for names, setting, value, text in flags:
        command.params.append(
            click.Option(
                names, is_flag=True, expose_value=False, is_eager=True, callback=_set(setting, value), help=text
            )
        )
    if any(isinstance(parameter.type, _Store) for parameter in command.params):
        option = click.Option(
            ["--storage-option"],
            metavar="KEY=VALUE",
            multiple=True,
            expose_value=False,
            is_eager=True,
            callback=_storage_option,
            help="Of the paths that are URLs: anon=true, endpoint=URL, profile=NAME, ... May be repeated.",
        )
        command.params.append(option)
        if command.name != "index":
            text = "Index (wustore index) of FITS files at the URL; by default the one beside them, if there is one."
            command.params.append(
                click.Option(["--index"], metavar="FILE", expose_value=False, is_eager=True, callback=_index, help=text)
            )
    return command


def grouped(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return the decorator that adds several options."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


# --- options of some ------------------------------------------------------------------------------------

format_option = click.option(
    "--format", "format_name", metavar="NAME", help="Format of PATH; by default its content says it."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Images at a time; by default as many as processors."
)

_target_options = grouped(
    click.option("--format", "target_format", metavar="NAME", help="Format of DST; by default its name says it."),
    click.option(
        "--from-format", "source_format", metavar="NAME", help="Format of SRC; by default its content says it."
    ),
    click.option("--profile", metavar="NAME", help="Compression of a Zarr or HDF5 DST: compact, portable, fast, none."),
    click.option("--layout", metavar="NAME", help="Chunking of a Zarr or HDF5 DST: images, cutouts, balanced."),
    click.option(
        "--option",
        "-o",
        "others",
        metavar="NAME=VALUE",
        multiple=True,
        help="An option of DST's format, such as compression_type=GZIP_2; -o help lists them. May be repeated.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace DST if it exists; it stays until the new one is whole."),
    click.option("--checksum", is_flag=True, help="FITS: write the cards CHECKSUM and DATASUM into every HDU."),
    click.option("--lossy", is_flag=True, help="Agree to options that lose values; what is lost is said in numbers."),
    click.option("--no-capsule", is_flag=True, help="Do not keep what gives back the identical FITS files."),
)

many_options = grouped(
    click.option("--jobs", type=click.IntRange(min=1), default=1, metavar="N", help="Inputs at a time; 1 by default."),
    click.option("--continue-on-error", is_flag=True, help="Go on with the next input after one that failed."),
)


@dataclass(frozen=True)
class TargetOptions:
    """What the options of `target_options` say about SRC and DST."""

    source_format: str | None
    target_format: str | None
    overwrite: bool
    lossy: bool
    no_capsule: bool
    profile: str | None
    layout: str | None
    others: tuple[str, ...]
    checksum: bool

    @property
    def of_format(self) -> dict[str, Any]:
        """The options of DST's format."""
        return format_options(self.profile, self.layout, self.others, checksum=self.checksum)

    @property
    def arguments(self) -> dict[str, Any]:
        """All of them, as `wustore.convert` and `wustore.plan` take them."""
        own = {
            "source_format": self.source_format,
            "format": self.target_format,
            "overwrite": self.overwrite,
            "lossy": self.lossy,
            "capsule": not self.no_capsule,
        }
        of_format = self.of_format
        for name in own.keys() & of_format.keys():
            raise UsageError("not an option of a format", where="--option", found=name, hint="-o help lists these.")
        return own | of_format


def target_options(command: F) -> F:
    """Add the options that say what DST becomes; the command gets them as ``to``, a `TargetOptions`."""

    @functools.wraps(command)
    def collected(*arguments: Any, **options: Any) -> Any:
        own = {member.name: options.pop(member.name) for member in fields(TargetOptions)}
        return command(*arguments, to=TargetOptions(**own), **options)

    return _target_options(collected)  # type: ignore[return-value]


def format_options(
    profile: str | None, layout: str | None, pairs: tuple[str, ...], *, checksum: bool = False
) -> dict[str, Any]:
    """Return the options of DST's format; a ``NAME=VALUE`` whose value is JSON is taken as such, else as text."""
    options: dict[str, Any] = {"checksum": True} if checksum else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(
                "an option of the format is not NAME=VALUE",
                where="--option",
                found=pair,
                hint="-o help lists the options of the format.",
            )
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options | {name: value for name, value in (("profile", profile), ("layout", layout)) if value is not None}


# --- several inputs -------------------------------------------------------------------------------------


def over(
    inputs: Sequence[tuple[str, ...]],
    action: Callable[..., int | None],
    *,
    jobs: int,
    continue_on_error: bool,
    done: str,
) -> int:
    """Run a command for each of several inputs, and return the exit code of them all: the largest.

    Parameters
    ----------
    inputs
        The arguments of each run: one path, or source and target.
    action
        Called with the arguments of a run; returns an exit code.
    jobs
        How many run at a time. With more than one, each is a process of its own.
    continue_on_error
        Whether to go on after one that did not succeed.
    done
        The word of the summary: "converted".
    """
    if len(inputs) == 1:
        return action(*inputs[0]) or OK
    runs = _in_processes(inputs, jobs) if jobs > 1 else (_guarded(action, arguments) for arguments in inputs)
    codes = []
    for code in runs:
        codes.append(code)
        if code != OK and not continue_on_error:
            break
    good, left = codes.count(OK), len(inputs) - len(codes)
    summary = f"{good} of {len(inputs)} {done}"
    if good != len(codes):
        summary += f", {len(codes) - good} failed"
    if left:
        summary += f", {left} not tried (--continue-on-error goes on)"
    report(summary)
    return max(codes)


def _guarded(action: Callable[..., int | None], arguments: tuple[str, ...]) -> int:
    try:
        return action(*arguments) or OK
    except BrokenPipeError:
        raise
    except (WuStoreError, OSError, MemoryError) as error:
        say(f"wustore: error: {error_text(error)}")
        return exit_code(error)


def _in_processes(inputs: Sequence[tuple[str, ...]], jobs: int) -> Iterable[int]:
    """Yield the exit code of each run, in order, as it ends; what it wrote is passed on as a whole."""
    context = click.get_current_context()
    command = [sys.executable, "-m", "wustore", str(context.info_name), *_options_given(context)]
    running: list[subprocess.Popen[bytes]] = []

    def run(arguments: tuple[str, ...]) -> tuple[int, bytes, bytes]:
        process = subprocess.Popen([*command, "--", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        running.append(process)
        out, err = process.communicate()
        return process.returncode, out, err

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, arguments) for arguments in inputs]
        try:
            for future in futures:
                code, out, err = future.result()
                click.echo(out, nl=False)
                click.echo(err, nl=False, err=True)
                yield code if code >= 0 else 128 - code
        finally:  # after an error, an interruption, or because the caller stops here
            for future in futures:
                future.cancel()
            for process in running:
                if process.poll() is None:
                    process.terminate()


def _options_given(context: click.Context) -> list[str]:
    """Return the words of the options of a command that were given, but for those about several inputs."""
    words = ["--quiet"] if SETTINGS.quiet else ["--verbose"] if SETTINGS.verbose else []
    for key, value in SETTINGS.storage_options.items():
        words += ["--storage-option", f"{key}={json.dumps(value)}"]
    words += [] if SETTINGS.index is None else ["--index", SETTINGS.index]
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if not isinstance(parameter, click.Option) or name in {"jobs", "continue_on_error"} or value is None:
            continue
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if parameter.is_flag:
            words.append(parameter.opts[0] if value or not parameter.secondary_opts else parameter.secondary_opts[0])
        elif parameter.multiple:
            words += [word for item in value for word in (parameter.opts[0], str(item))]
        elif parameter.nargs > 1:
            words += [parameter.opts[0], *map(str, value)]
        else:
            words += [parameter.opts[0], str(value)]
    return words
