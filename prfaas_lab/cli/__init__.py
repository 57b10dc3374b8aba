"""The command line: `prfaas-lab COMMAND`. The only room that exits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module

import typer

from prfaas_lab import __version__
from prfaas_lab.errors import LabError, SpecError

COMMANDS = {
    "scenario": "scenario:scenario",
    "serve": "serve:serve",
    "ctl": "serve:ctl",
    "compare": "compare:compare",
    "simulate": "simulate:simulate",
    "sweep": "sweep:sweep",
    "capacity": "sweep:capacity",
    "validate-sim": "validate_sim:validate_sim",
    "plan": "plan:plan",
    "calibrate": "calibrate:calibrate",
    "validate": "files:validate",
    "schema": "files:schema",
    "cache-report": "cache_report:cache_report",
    "transfer-bench": "transfer:transfer_bench",
    "link-test": "machine:link_test",
    "doctor": "machine:doctor",
    "clean": "machine:clean",
}
"""Name -> module:function in this room. What is not asked for is not imported: a start is quick."""


def application(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands."""
    app = typer.Typer(
        name="prfaas-lab",
        help="""Emulate Prefill-as-a-Service on one Linux machine: prefill and decode engines in
        network namespaces, KVCache over shaped links between "datacenters", and what it does to
        TTFT, TPOT and throughput.

        Start with: prfaas-lab scenario scenarios/bursty.yaml""",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in names:
        module, _, attribute = COMMANDS[name].partition(":")
        command = getattr(import_module(f"{__name__}.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Options that need no command."""


def main() -> None:
    """The console script. A LabError is printed without a traceback and exits with its code."""
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        application([asked] if asked in COMMANDS else COMMANDS)()
    except SpecError as error:  # lines of `file:line: ...` that editors can jump to
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except LabError as error:
        sys.stderr.write(f"prfaas-lab: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `prfaas-lab ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
