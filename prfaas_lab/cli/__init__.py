"""The command line: `prfaas-lab COMMAND`. The only room that exits."""

from __future__ import annotations

import inspect
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

SUMMARIES = {
    "scenario": "Run a scenario: bring up its datacenters, drive its workload, show it live, sum it up.",
    "serve": "Bring a topology up and serve it over HTTP, as OpenAI's API: completions, chat, metrics.",
    "ctl": "Look at a deployment that `prfaas-lab serve` runs, and change it.",
    "compare": "Run one workload under several policies, with the same seeds, and compare their "
    "steady states.",
    "simulate": "Run a scenario on a virtual clock: the same control plane, in seconds, without "
    "root or a model.",
    "sweep": "Simulate every combination of a grid, into one tidy table.",
    "capacity": "The highest arrival rate at which a deployment holds an SLO, by bisection over simulations.",
    "validate-sim": "Run a scenario in both modes, and print the simulation's error for every measure.",
    "plan": "Plan a deployment: threshold, prefill and decode instances, throughput, and what binds.",
    "calibrate": "Measure a real model on this machine: prefill and decode times and KVCache "
    "sizes, as a profile.",
    "validate": "Check topology and scenario files; report every mistake with its line and the remedy.",
    "schema": "Print the JSON Schema of a kind of file, for editors.",
    "cache-report": "Show what the prefix caches of a run found, saved, copied and threw away.",
    "transfer-bench": "Measure KVCache transfer: goodput as a share of the link, CPU seconds per GB, "
    "exposed time.",
    "link-test": "Bring a topology's links up, measure every direction, and compare with the file.",
    "doctor": "Say what this machine can do, what will be used, and what would make it better.",
    "clean": "Remove what killed runs left: namespaces, processes, sockets. Nothing else is touched.",
}
"""The first sentence of each, for the list of them, which imports none (a test holds the two together)."""


def application(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands."""
    app = _bare()
    for name in names:
        module, _, attribute = COMMANDS[name].partition(":")
        command = getattr(import_module(f"{__name__}.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, help=_unwrapped(command.__doc__))(command)
    return app


def _unwrapped(docstring: str) -> str:
    """As wide as the terminal, not as the source; but for paragraphs that begin with a backspace."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(p if p.startswith("\b") else p.replace("\n", " ") for p in paragraphs)


def listing() -> typer.Typer:
    """All commands by name and summary, to be shown and not to be run."""
    app = _bare()
    for name, summary in SUMMARIES.items():
        app.command(name, help=summary)(_unused)
    return app


def _unused() -> None:
    """Stands for a command that nobody asked to run."""


def _bare() -> typer.Typer:
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
    return app


def _asked(arguments: list[str]) -> typer.Typer:
    """The one command that is asked for; without any, the list of them."""
    if arguments and arguments[0] in COMMANDS:
        return application([arguments[0]])
    return application() if COMMANDS.keys() & set(arguments) else listing()


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
    try:
        _asked(sys.argv[1:])()
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
