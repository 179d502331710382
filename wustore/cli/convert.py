"""``wustore convert``; ``plan``, ``part``, ``finish``: as tasks of a job array; ``index``: FITS as it is, at URLs."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from wustore.backends.base import Progress
from wustore.cli._options import STORE, TargetOptions, json_option, many_options, over, target_options, workers_option
from wustore.cli._output import SIZE, detail, progress_bar, report, size_text
from wustore.cli._run import DIFFERS, OK
from wustore.errors import UsageError, WuStoreError

__all__ = ["convert", "finish", "index", "part", "plan"]

_EXAMPLES = """
\b
Examples:
  wustore convert night.fits night.zarr
  wustore convert night.zarr again.fits
  wustore convert night.zarr out/night.fits --format sharded-fits
  wustore convert night.fits small.zarr --profile portable
  wustore convert night.fits night.zarr --resume --workers 8 --max-memory 4G
  wustore convert night.fits night.zarr --dry-run
  wustore convert *.fits archive/ --jobs 4 --continue-on-error
  wustore convert *.zarr exchange/ --format hdf5
"""


@click.command(epilog=_EXAMPLES)
@click.argument("paths", metavar="SRC... DST", nargs=-1, required=True, type=STORE)
@target_options
@workers_option
@click.option(
    "--processes/--threads",
    default=False,
    help="What a worker is: a thread by default.",
)
@click.option(
    "--max-memory", type=SIZE, metavar="SIZE", help="Memory for the images being processed, such as 2G; lowers N."
)
@click.option("--resume", is_flag=True, help="Go on with a conversion that was interrupted; keep what is written.")
@click.option("--scheduler", metavar="ADDRESS", help="Run the parts on the Dask cluster of this scheduler.")
@many_options
@click.option("--dry-run", is_flag=True, help="Estimate size, files, memory, time and free space; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: the estimate as JSON.")
def convert(
    paths: tuple[str, ...],
    *,
    to: TargetOptions,
    workers: int | None,
    processes: bool,
    max_memory: int | None,
    resume: bool,
    scheduler: str | None,
    jobs: int,
    continue_on_error: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Convert SRC into DST; nothing is lost.

    Options that lose values (of FITS: quantize_level, RICE_1) are refused unless --lossy is given. Then what each layer
    lost is said in numbers, and the exit code is 1.

    The format of SRC is found from its content, that of DST from its name; ``wustore formats`` lists them. A
    sharded FITS set is named by its primary file. DST appears when it is whole, or not at all.

    If there are several SRC, or DST is a directory, each is converted into a file or store of its own name in
    DST: Zarr, or what --format says.
    """
    if "help" in to.others:
        return _show_options(to.target_format or _format_of_name(paths[-1]))
    arguments = to.arguments
    if as_json and not dry_run:
        raise UsageError("--json goes with --dry-run", where="--json", hint="A conversion prints no data.")
    targets = _targets(paths, to.target_format)
    if targets[0][1] != paths[-1] and "://" not in paths[-1] and not dry_run:
        Path(paths[-1]).mkdir(parents=True, exist_ok=True)

    def one(source: str, target: str) -> int:
        if dry_run:
            kept = _kept(target) if resume else 0
            _show_estimate(source, target, to, kept, workers=workers, max_memory=max_memory, as_json=as_json)
            return OK
        from wustore.ops.convert import convert as run

        _say_if_sharded(source, target, to)
        detail(f"converting {source} to {target}")
        with progress_bar("converting") as bar:
            count = _Count(bar)
            lost = run(
                source,
                target,
                workers=workers,
                processes=processes,
                max_memory=max_memory,
                resume=resume,
                scheduler=scheduler,
                progress=count,
                **arguments,
            )
        report(_result(source, target, count))
        return DIFFERS if lost else OK

    return over(targets, one, jobs=jobs, continue_on_error=continue_on_error, done="converted")


class _Count:
    """Counts the images that a conversion writes, and passes the count on to a bar."""

    def __init__(self, bar: Progress | None) -> None:
        self.bar = bar
        self.written = 0
        self.total: int | None = None

    def __call__(self, done: int, total: int) -> None:
        self.written += 1
        self.total = total
        if self.bar is not None:
            self.bar(done, total)


def _result(source: str, target: str, count: _Count) -> str:
    """Return the line that says what a conversion made."""
    parts = []
    if count.total is None:  # every image was there already
        parts.append("all images kept from the interrupted conversion")
    else:
        parts.append(f"{count.total} images")
        if count.written < count.total:
            parts.append(f"{count.total - count.written} of them kept from the interrupted conversion")
    before, after = _bytes(source), _bytes(target)
    if after:
        parts.append(size_text(after) + (f", {after / before:.2f} of {source}" if before else ""))
    return f"{target}: {', '.join(parts)}"


def _bytes(path: str) -> int:
    """Return the bytes of a file with the other files of its sharded set, or of all files in a directory."""
    place = Path(path)
    if place.is_dir():
        return sum(entry.stat().st_size for entry in place.rglob("*") if entry.is_file())
    if not place.is_file():
        return 0
    shards = (entry for entry in place.parent.glob(f"*_{place.name}") if entry.name.partition("_")[0].isdecimal())
    return place.stat().st_size + sum(entry.stat().st_size for entry in shards)


_ENDINGS = {"hdf5": ".h5", "fits": ".fits", "sharded-fits": ".fits"}
"""Endings of new files of formats that have several."""


def _targets(paths: tuple[str, ...], target_format: str | None) -> list[tuple[str, str]]:
    """Return (source, target) of each conversion.

    Raises
    ------
    UsageError
        If there is no target, or two sources would get the same one.
    """
    if len(paths) < 2:
        raise click.UsageError(f"There is no DST. Say where to write: wustore convert {paths[0]} DST")
    *sources, target = paths
    if len(sources) == 1 and not _is_directory(target, target_format):
        return [(sources[0], target)]
    from wustore.backends.registry import backend_named

    name = target_format or "zarr"
    ending = _ENDINGS.get(name) or backend_named(name).suffixes[0]
    found = [(source, os.path.join(target, _stem(source) + ending)) for source in sources]  # noqa: PTH118 - or a URL
    twice = {path for k, (_, path) in enumerate(found) if path in {other for _, other in found[:k]}}
    if twice:
        raise UsageError(
            "two sources would be converted into the same target",
            path=min(twice),
            hint="Convert them one by one, or into different directories.",
        )
    return found


def _is_directory(target: str, target_format: str | None) -> bool:
    """Return whether DST is a directory to write into, not the store itself."""
    if target.endswith("/"):
        return True
    if not Path(target).is_dir() or Path(target, "zarr.json").exists():
        return False
    return target_format is None and _format_of_name(target) is None


def _format_of_name(path: str) -> str | None:
    from wustore.backends.registry import backend_for_writing
    from wustore.errors import UnknownFormatError

    try:
        return backend_for_writing(path).name
    except UnknownFormatError:
        return None


def _stem(path: str) -> str:
    """Return the name of a file or store without the ending that says its format."""
    from wustore.backends.registry import backend_named, format_names

    name = path.partition("?")[0].rstrip("/").rpartition("/")[2]
    endings = sorted((ending for each in format_names() for ending in backend_named(each).suffixes), key=len)
    return next((name[: -len(ending)] for ending in reversed(endings) if name.lower().endswith(ending)), name)


def _show_options(name: str | None) -> int:
    """List what ``-o`` takes, of one format or of all."""
    from wustore.backends.registry import backend_named, format_names

    for each in [name] if name else format_names():
        backend = backend_named(each)
        if backend.options or name:
            click.echo(f"{each}:" + ("" if backend.options else " no options"))
        width = max(map(len, backend.options), default=0)
        for option, text in backend.options.items():
            click.echo(f"  {option:<{width}}  {text}")
    return 0


def _say_if_sharded(source: str, target: str, to: TargetOptions) -> None:
    """Say how a sharded set is made, if a single FITS file is asked for of a store that was made from a set."""
    from wustore.backends.registry import open_reader

    if to.target_format is not None or _format_of_name(target) != "fits":
        return
    try:
        with open_reader(source, format=to.source_format) as reader:
            capsule = (reader.document() or {}).get("capsule")
            sharded = reader.format == "sharded-fits" or (
                isinstance(capsule, dict) and capsule.get("form") == "sharded-fits"
            )
    except (WuStoreError, OSError):
        return  # the conversion itself says what is wrong
    if sharded:
        report(f"{source} holds a sharded set; --format sharded-fits writes it as one, this writes a single file")


def _kept(target: str) -> int:
    """Return how many images of an interrupted conversion are there."""
    from wustore.ops.plans import progress_of

    try:
        return progress_of(target)[0]
    except WuStoreError:  # there is none
        return 0


def _show_estimate(
    source: str,
    target: str,
    to: TargetOptions,
    kept: int,
    *,
    workers: int | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Print what a conversion will need, and refuse one that will not fit.

    Raises
    ------
    WuStoreError
        The target exists, or has no room.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.estimate import estimate, refuse_if_too_large
    from wustore.storage.staging import check_target

    if "://" not in target and not target.startswith("ram:"):
        check_target(target, overwrite=to.overwrite)  # the same refusals as the conversion itself
    with open_reader(source, format=to.source_format) as reader:
        found = estimate(
            reader,
            target,
            format=to.target_format,
            workers=workers,
            max_memory=max_memory,
            capsule=not to.no_capsule,
            options=to.of_format,
        )
    seconds = found.seconds * (1 - kept / found.n_images)
    if as_json:
        click.echo(json.dumps({**asdict(found), "seconds": seconds, "kept": kept, "fits": found.fits}, indent=2))
    else:
        sampled = " and ".join(map(str, found.sampled))
        free = "unknown" if found.free_bytes is None else size_text(found.free_bytes)
        click.echo(f"images   {found.n_images} (measured on image {sampled})")
        if kept:
            click.echo(f"kept     {kept} of them, from the interrupted conversion")
        files = "1 file" if found.target_files == 1 else f"{found.target_files} files"
        click.echo(f"size     {size_text(found.target_bytes)} in {files}, without FITS reconstruction data")
        click.echo(f"memory   {size_text(found.memory_bytes)}; images at a time: {found.workers}")
        click.echo(f"time     {seconds:.1f} s")
        click.echo(f"free     {free}")
    refuse_if_too_large(found, target)


_JOB_EXAMPLES = """
\b
Examples:
  wustore plan night.fits night.zarr --parts 20
  wustore part night.zarr $SLURM_ARRAY_TASK_ID     (in a job array 0-19)
  wustore finish night.zarr
"""


@click.command(epilog=_JOB_EXAMPLES)
@click.argument("source", metavar="SRC", type=STORE)
@click.argument("target", metavar="DST", type=STORE)
@click.option(
    "--parts",
    type=click.IntRange(min=1),
    required=True,
    metavar="N",
    help="Number of parts; at most one for each image.",
)
@target_options
def plan(
    source: str,
    target: str,
    *,
    parts: int,
    to: TargetOptions,
) -> int:
    """Plan the conversion of SRC into DST in N parts.

    Prints the plan as JSON. Then every part may run anywhere, in any order, more than once; ``wustore
    finish`` checks that all is there and lets DST appear. Planning again with another N is refused.
    """
    if "help" in to.others:
        return _show_options(to.target_format or _format_of_name(target))
    from wustore.ops.plans import plan as run

    job = run(source, target, parts=parts, **to.arguments)
    images = [len(job.images_of(k)) for k in range(job.parts)]
    click.echo(json.dumps({"target": job.target, "images": job.n_images, "parts": job.parts, "images_of_part": images}))
    report(f"{target}: planned in {job.parts} parts; wustore part {target} K for each K, then wustore finish {target}")
    return 0


@click.command(epilog=_JOB_EXAMPLES)
@click.argument("target", metavar="DST", type=STORE)
@click.argument("number", metavar="K", type=click.IntRange(min=0))
@workers_option
def part(target: str, number: int, *, workers: int | None) -> None:
    """Write part K (0 to N-1) of the planned conversion to DST.

    What is written already is checked and kept, so that a part that was killed can simply run again. A K beyond
    the last part does nothing and exits 0: an array may be larger than the number of images.
    """
    from wustore.ops.run_parts import part as run

    with progress_bar(f"part {number}") as progress:
        written = run(target, number, workers=workers, progress=progress)
    report(f"part {number}: {written} images written")


@click.command(epilog=_JOB_EXAMPLES)
@click.argument("target", metavar="DST", type=STORE)
def finish(target: str) -> int:
    """Check that every part of the conversion to DST is there, and let DST appear."""
    from wustore.ops.run_parts import finish as run

    lost = run(target)
    size = _bytes(target)
    report(f"{target}: finished" + (f", {size_text(size)}" if size else ""))
    return DIFFERS if lost else OK


_INDEX_EXAMPLES = """
\b
Examples:
  wustore index night.fits
  wustore index season/*.fits --jobs 4 --overwrite
  wustore index https://example.org/night.fits -o night.fits.wuindex
"""


@click.command(epilog=_INDEX_EXAMPLES)
@click.argument("paths", metavar="FITS...", nargs=-1, required=True, type=STORE)
@click.option(
    "--output", "-o", metavar="FILE", type=click.Path(), help="Where to write; by default FITS with .wuindex behind it."
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@json_option
@many_options
def index(
    paths: tuple[str, ...], *, output: str | None, overwrite: bool, as_json: bool, jobs: int, continue_on_error: bool
) -> int:
    """Write a small index of a FITS file, through which it is read at a URL.

    Put the index beside the file at the URL, where it is found, or name it with --index. Opening takes two or three
    requests, for a sharded set too, which is named by its primary file; stamps read the blocks that they touch. A file
    that is not the one that was indexed is refused. Each FITS is read once, as a whole.
    """
    if output is not None and len(paths) > 1:
        raise UsageError("one output for several files", where="--output", found=f"{len(paths)} files")

    def one(path: str) -> int:
        from wustore.api import index as run

        with progress_bar("indexing") as progress:
            made = run(path, output, overwrite=overwrite, progress=progress)
        if as_json:
            facts = {"source": path, "path": made.path, "bytes": made.size, "n_images": made.n_images}
            click.echo(json.dumps(facts | {"files": made.n_files, "source_bytes": made.source_size}, indent=2))
        else:
            of = f"{made.n_images} images in {made.n_files} files" if made.n_files > 1 else f"{made.n_images} images"
            report(f"{made.path}: {size_text(made.size)} for {of} of {size_text(made.source_size)}")
        return OK

    return over([(path,) for path in paths], one, jobs=jobs, continue_on_error=continue_on_error, done="indexed")
