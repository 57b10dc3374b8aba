"""`serve`: a deployment behind an OpenAI-compatible endpoint; and `ctl`, which changes it meanwhile."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from prfaas_lab.api.endpoint import check_address, open_endpoint
from prfaas_lab.api.settings import EndpointSettings
from prfaas_lab.cli.asked import found, fresh_directory
from prfaas_lab.dashboard.live import screen_for
from prfaas_lab.dashboard.table import print_summary
from prfaas_lab.errors import LabError
from prfaas_lab.lab.deployment import Options
from prfaas_lab.lab.serving import load_for_serving, run_serving

_CTL_TIMEOUT_S = 30.0

ApiKeyFile = Annotated[
    Path | None, typer.Option(help="A file with the key that callers must give as a bearer token.")
]


def serve(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A topology, or a scenario to take it from.")],
    host: Annotated[
        str, typer.Option(help="Where to listen; the default is this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key_file: ApiKeyFile = None,
    scale: Annotated[
        float | None, typer.Option(help="Shrink bytes and bandwidth together, as scale: in a scenario.")
    ] = None,
    max_requests: Annotated[
        int, typer.Option(min=1, max=10_000, help="Served or waiting at once; beyond that, 429.")
    ] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="The longest prompt.")] = 131072,
    max_output_tokens: Annotated[int, typer.Option(min=1, help="The longest output.")] = 8192,
    out: Annotated[
        Path | None, typer.Option(help="Where the results go.", show_default="runs/<time>-<name>")
    ] = None,
    headless: Annotated[
        bool, typer.Option("--headless", help="No dashboard: a line every few seconds (also when piped).")
    ] = False,
    shaper: Annotated[
        str, typer.Option(help="How links are shaped: auto, netem, tun or relay (see prfaas-lab doctor).")
    ] = "auto",
    allow_unfaithful: Annotated[
        bool,
        typer.Option("--allow-unfaithful", help="Serve even when the measured links are off their spec."),
    ] = False,
) -> None:
    """Bring a topology up and serve it over HTTP, as OpenAI's API: completions, chat, metrics.

    Ctrl-C refuses new requests and drains; a second one stops at once. Either way nothing is left behind.

    \b
    Next: curl http://127.0.0.1:8000/v1/completions \\
              -H 'Content-Type: application/json' \\
              -d '{"prompt": "Hello", "max_tokens": 16}'
          prfaas-lab ctl link wan --rate 20Gbit --lasts 30s
    """
    if scale is not None and not 0 < scale <= 1:
        raise typer.BadParameter("--scale lies above 0, and at 1 at most")
    resolved, note = load_for_serving(found(file), scale=scale)
    settings = EndpointSettings(
        host=host,
        port=port,
        api_key=_key(api_key_file),
        max_requests=max_requests,
        max_prompt_tokens=max_prompt_tokens,
        max_output_tokens=max_output_tokens,
    )
    check_address(settings)
    options = Options(
        out=out or fresh_directory(resolved.scenario.name),
        mode="serve",
        shaper=shaper,
        allow_unfaithful=allow_unfaithful,
    )
    outcome = run_serving(
        resolved,
        options,
        lambda ledger: screen_for(ledger, headless=headless),
        lambda deployment: open_endpoint(deployment, settings),
        note,
    )
    print_summary(outcome.summary, files=str(options.out))


def _key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise LabError(f"cannot read the API key: {what}", where=str(file)) from error
    if not key:
        raise LabError("the API key is empty", where=str(file), remedy="write a secret into it")
    return key


ctl = typer.Typer(
    help="Look at a deployment that `prfaas-lab serve` runs, and change it.", no_args_is_help=True
)

Url = Annotated[str, typer.Option(help="Where it serves.", envvar="PRFAAS_LAB_URL")]
_URL = "http://127.0.0.1:8000"


@ctl.command()
def state(url: Url = _URL, api_key_file: ApiKeyFile = None) -> None:
    """Print the deployment as it is now, as JSON."""
    _print(_call(url, "/lab/state", _key(api_key_file)))


@ctl.command()
def link(
    name: Annotated[str, typer.Argument(help="A link of the topology.")],
    rate: Annotated[
        str | None, typer.Option(help="As in the topology, e.g. 20Gbit; 0 lets nothing pass.")
    ] = None,
    delay: Annotated[str | None, typer.Option(help="One way, e.g. 25ms.")] = None,
    jitter: Annotated[str | None, typer.Option(help="e.g. 2ms.")] = None,
    loss: Annotated[str | None, typer.Option(help="e.g. 0.1%.")] = None,
    outage: Annotated[str | None, typer.Option(help="Let nothing pass for this long, e.g. 5s.")] = None,
    lasts: Annotated[str | None, typer.Option(help="Undo it after this long.")] = None,
    source: Annotated[str | None, typer.Option(help="Only what leaves this datacenter.")] = None,
    url: Url = _URL,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Change a link now; prints it as it is then."""
    asked: dict[str, Any] = {
        "rate": 0 if rate == "0" else rate, "delay": delay, "jitter": jitter, "loss": loss,
        "outage": outage, "lasts": lasts, "source": source,
    }  # fmt: skip
    body = {key: value for key, value in asked.items() if value is not None}
    _print(_call(url, f"/lab/links/{urllib.parse.quote(name, safe='')}", _key(api_key_file), body))


@ctl.command()
def policy(
    name: Annotated[str | None, typer.Argument(help="threshold, local-only, remote-all, ...")] = None,
    threshold: Annotated[str | None, typer.Option(help="Offload above so many uncached tokens.")] = None,
    url: Url = _URL,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Change where prefill runs, from the next request on."""
    body = {key: value for key, value in {"name": name, "threshold": threshold}.items() if value is not None}
    _print(_call(url, "/lab/policy", _key(api_key_file), body))


def _print(answer: Any) -> None:
    typer.echo(json.dumps(answer, indent=2))


def _call(url: str, path: str, key: str | None, body: dict[str, Any] | None = None) -> Any:
    """GET, or POST a body. Raises LabError with what the server says."""
    if not url.startswith(("http://", "https://")):
        raise LabError("is not an HTTP address", where=url, remedy="write --url http://127.0.0.1:8000")
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url.rstrip("/") + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_CTL_TIMEOUT_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise LabError(_told(error), where=f"{url}{path}") from error
    except (OSError, ValueError) as error:
        raise LabError(
            f"cannot be reached: {getattr(error, 'reason', error)}",
            where=url,
            remedy="start prfaas-lab serve, or give its --url",
        ) from error


def _told(error: urllib.error.HTTPError) -> str:
    text = error.read(65536).decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}: {text[:200]}"
