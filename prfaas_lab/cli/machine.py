"""`doctor`, `link-test` and `clean`: about this machine and the network it can emulate."""

from __future__ import annotations

import typer

from prfaas_lab.fabric.ownership import clean as clean_up


def clean(
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be removed."),
) -> None:
    """Remove what killed runs left: namespaces, processes, sockets. Nothing else is touched.

    A run that ends by itself, by Ctrl-C or by SIGTERM leaves nothing. What is removed here is what
    the journal of a run whose process is gone names; never anything by the look of its name.
    """
    found = clean_up(all_dead=not dry_run)
    verb = "would remove" if dry_run else "removed"
    for what in found:
        typer.echo(f"{verb} {what}")
    if not found:
        typer.echo("nothing was left behind")
