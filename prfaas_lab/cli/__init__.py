"""The command line: `prfaas-lab COMMAND`. The only room that exits."""

from __future__ import annotations

import os
import sys

import typer

from prfaas_lab import __version__
from prfaas_lab.cli import files, machine, scenario, serve, transfer
from prfaas_lab.cli.cache_report import cache_report
from prfaas_lab.cli.compare import compare
from prfaas_lab.cli.plan import plan
from prfaas_lab.cli.simulate import simulate
from prfaas_lab.cli.sweep import capacity, sweep
from prfaas_lab.cli.validate_sim import validate_sim
from prfaas_lab.errors import LabError, SpecError

app = typer.Typer(
    name="prfaas-lab",
    help="""Emulate Prefill-as-a-Service on one Linux machine: prefill and decode engines in network
    namespaces, KVCache over shaped links between "datacenters", and what it does to TTFT, TPOT and
    throughput.

    Start with: prfaas-lab scenario scenarios/bursty.yaml""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(scenario.scenario)
app.command()(serve.serve)
app.add_typer(serve.ctl, name="ctl")
app.command()(simulate)
app.command("validate-sim")(validate_sim)
app.command()(sweep)
app.command()(capacity)
app.command()(files.validate)
app.command()(files.schema)
app.command()(plan)
app.command("cache-report")(cache_report)
app.command()(compare)
app.command("link-test")(machine.link_test)
app.command("transfer-bench")(transfer.transfer_bench)
app.command()(machine.doctor)
app.command()(machine.clean)


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """The console script. A LabError is printed without a traceback and exits with its code."""
    try:
        app()
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
