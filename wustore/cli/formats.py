"""``wustore formats``."""

from __future__ import annotations

import json

import click

__all__ = ["formats"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
def formats(*, as_json: bool) -> None:
    """List the formats that wustore reads and writes, those of other packages among them."""
    from wustore.backends.registry import backend_named, format_names

    rows = []
    for name in format_names():
        backend = backend_named(name)
        rows.append({"name": name, "suffixes": list(backend.suffixes), "description": backend.description})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        endings = f" ({', '.join(row['suffixes'])})" if row["suffixes"] else ""
        click.echo(f"{row['name']:<{width}}  {row['description']}{endings}")
