#!/usr/bin/env python3
"""Real clients against `prfaas-lab serve`: do they complete, and do their figures agree with our ledger?

    scripts/bench clients [--scenario scenarios/smoke.yaml] [--only curl,openai,...]

Each client has an environment of its own, made on first use under ~/.cache/prfaas-lab/clients (aiperf and
guidellm need about 4 GB). The server runs as any user runs it. Exit code 1: a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
HOME = Path.home() / ".cache/prfaas-lab/clients"
PACKAGES = {
    "openai": ["openai>=3,<4"],
    "aiperf": ["torch==2.13.0", "aiperf==0.13.*"],
    "guidellm": ["torch==2.13.0", "guidellm==0.8.1"],
    "schemathesis": ["schemathesis>=4"],
}
MODEL = "qwen3-next-tiny"
START_S, CLIENT_S = 180, 600
Promise = tuple[bool, str]
_FIRST = ["nice", "-n", "-10"] if os.geteuid() == 0 else []
"""A clock that waits for a core measures its own waiting: aiperf goes before the engines where it may."""


def main() -> int:
    options = _arguments()
    wanted = options.only.split(",") if options.only else list(CHECKS)
    promises: list[Promise] = []
    with tempfile.TemporaryDirectory(prefix="clients-") as work:
        with _server(options.scenario, options.port, Path(work)) as server:
            for name in wanted:
                print(f"-- {name}", flush=True)
                for promise in CHECKS[name](server):
                    promises.append(promise)
                    print("kept  " if promise[0] else "BROKEN", promise[1], flush=True)
        promises += server.after()
    for kept, text in promises[-2:]:
        print("kept  " if kept else "BROKEN", text)
    return 0 if all(kept for kept, _ in promises) else 1


class Server:
    """A `prfaas-lab serve` that runs, and its ledger."""

    def __init__(self, url: str, out: Path, work: Path, pid: int) -> None:
        self.url, self.out, self.work, self.pid = url, out, work, pid
        self.spans: dict[str, tuple[int, int]] = {}

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/lab/state", timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def submitted(self) -> int:
        return int(self.state()["requests"]["submitted"])

    def rows(self, first: int, last: int) -> list[dict[str, Any]]:
        """What the ledger has of the requests from the first to the last, by their order."""
        rows: dict[str, dict[str, Any]] = {}
        order: list[str] = []
        for line in (self.out / "events.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["kind"] == "RequestSubmitted":
                order.append(event["request_id"])
                rows[event["request_id"]] = {"submitted_s": event["at_s"], "tokens_s": []}
            elif event["kind"] == "TokensEmitted":
                rows[event["request_id"]]["tokens_s"].append(event["at_s"])
        return [rows[name] for name in order[first:last]]

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def after(self) -> Iterator[Promise]:
        """What its files say once it has ended."""
        summary = json.loads((self.out / "summary.json").read_text())
        counts = {key: summary[key] for key in ("submitted", "completed", "failed", "in_flight")}
        yield summary["in_flight"] == 0, f"no request was lost: {counts}"
        reasons = {failure["reason"] for failure in summary["failures"]}
        yield reasons <= {"the client left"}, f"requests failed only since clients left: {reasons or 'none'}"


@contextmanager
def _server(scenario: str, port: int, work: Path) -> Iterator[Server]:
    out = work / "run"
    command = [sys.executable, "-m", "prfaas_lab", "serve", scenario, "--headless", "--allow-unfaithful"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--out", str(out)],
        cwd=ROOT, stdout=(work / "serve.log").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", out, work, process.pid)
    try:
        _await_health(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        print((work / "serve.log").read_text()[-1500:])


def _await_health(server: Server, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{server.url}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit((server.work / "serve.log").read_text())


# -- the clients -------------------------------------------------------------------------------


def curl(server: Server) -> Iterator[Promise]:
    body = json.dumps({"prompt": "Hello", "max_tokens": 4, "stream": True})
    call = ["curl", "-sS", "-N", f"{server.url}/v1/completions", "-H", "Content-Type: application/json"]
    done = subprocess.run([*call, "-d", body], capture_output=True, text=True, timeout=60, check=False)
    events = [line for line in done.stdout.splitlines() if line.startswith("data: ")]
    yield len(events) == 5 and events[-1] == "data: [DONE]", f"curl: {len(events)} events, the last its end"
    head = subprocess.run(
        ["curl", "-sSI", f"{server.url}/metrics"], capture_output=True, text=True, timeout=60, check=False
    )
    yield " 200 " in head.stdout.splitlines()[0], "curl: HEAD /metrics"


OPENAI = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id
text = client.completions.create(model=model, prompt="Hello", max_tokens=5, temperature=0)
ids = client.completions.create(model=model, prompt=[b + 3 for b in b"Hello"], max_tokens=5, temperature=0)
assert text.choices[0].text == ids.choices[0].text and text.usage.prompt_tokens == 5
asks = [{"role": "user", "content": "Hello"}]
seeded = [
    client.chat.completions.create(model=model, messages=asks, max_tokens=12, seed=seed)
    for seed in (1, 1, 2)
]
one, again, other = (answer.choices[0].message.content for answer in seeded)
assert one == again != other
chunks = list(
    client.chat.completions.create(
        model=model, messages=asks, max_tokens=20, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )
)
assert len(chunks) == 21 and chunks[-1].usage.completion_tokens == 20 and not chunks[-1].choices
for wrong, status in (({"n": 2}, 400), ({"model": "other"}, 404), ({"max_tokens": 10**9}, 400)):
    try:
        client.completions.create(**{"model": model, "prompt": "x", "max_tokens": 2, **wrong})
    except openai.APIStatusError as error:
        assert error.status_code == status, error
    else:
        raise AssertionError(wrong)
print(openai.__version__)
"""


def openai(server: Server) -> Iterator[Promise]:
    done = subprocess.run(
        [_python("openai"), "-c", OPENAI, server.url],
        capture_output=True, text=True, timeout=CLIENT_S, check=False,
    )  # fmt: skip
    yield done.returncode == 0, f"openai {done.stdout.strip()}: all forms {done.stderr[-500:]}"


def aiperf(server: Server) -> Iterator[Promise]:
    load = [
        "--concurrency",
        "2",
        "--request-count",
        "40",
        "--isl",
        "200",
        "--isl-stddev",
        "50",
        "--osl",
        "24",
    ]
    yield from _aiperf(server, "aiperf, concurrency 2", load, 40)


def aiperf_trace(server: Server) -> Iterator[Promise]:
    trace = server.work / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in _trace(30)))
    load = ["--input-file", str(trace), "--custom-dataset-type", "mooncake_trace", "--fixed-schedule"]
    yield from _aiperf(server, "aiperf, Mooncake trace", load, 30)


def _trace(requests: int) -> Iterator[dict[str, Any]]:
    """As Mooncake's: blocks of 512 tokens, of which the first are shared by some."""
    draw, at_ms = random.Random(1), 0
    for number in range(requests):
        tokens, shared = draw.choice([200, 400, 700, 1100]), draw.choice([0, 100])
        blocks = -(-tokens // 512)
        ids = [shared + block for block in range(blocks - 1)] + [1000 + number]
        yield {
            "timestamp": at_ms, "input_length": tokens, "output_length": draw.choice([12, 24]),
            "hash_ids": ids,
        }  # fmt: skip
        at_ms += int(draw.expovariate(1 / 700))


def _aiperf(server: Server, name: str, load: list[str], requests: int) -> Iterator[Promise]:
    first, out = server.submitted(), server.work / name.replace(" ", "-").replace(",", "")
    call = [
        _python("aiperf").replace("/python", "/aiperf"), "profile", "-m", MODEL, "--url", server.url,
        "--endpoint-type", "chat", "--streaming", "--use-server-token-count",
        "--tokenizer", TOKENIZER,
        "--extra-inputs", "ignore_eos:true", "--output-artifact-dir", str(out), "--ui", "none",
    ]  # fmt: skip
    done = subprocess.run(
        [*_FIRST, *call, *load],
        capture_output=True, text=True, timeout=CLIENT_S, cwd=server.work, env=_tokenizer(), check=False,
    )  # fmt: skip
    report = out / "profile_export_aiperf.json"
    if not report.exists():
        yield False, f"{name}: {(done.stdout + done.stderr)[-1500:]}"
        return
    found = json.loads(report.read_text())
    errors = found.get("error_request_count") or {"avg": 0}
    count = found["request_count"]["avg"]
    yield count == requests and not errors["avg"], f"{name}: {count:.0f} requests, {errors['avg']:.0f} errors"
    yield from _agreement(name, found, server.rows(first, server.submitted()))


def _agreement(name: str, found: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[Promise]:
    """Medians over the requests, of TTFT and of the mean gap between tokens."""
    ttft = [1e3 * (row["tokens_s"][0] - row["submitted_s"]) for row in rows]
    gaps = [
        1e3 * (row["tokens_s"][-1] - row["tokens_s"][0]) / (len(row["tokens_s"]) - 1)
        for row in rows
        if len(row["tokens_s"]) > 1
    ]
    for key, ours in (("time_to_first_token", ttft), ("inter_token_latency", gaps)):
        theirs, mine = found[key]["p50"], statistics.median(ours)
        apart = abs(theirs - mine)
        yield (
            apart <= max(5.0, 0.05 * mine),
            f"{name}: {key} p50 {theirs:.2f} ms, our ledger's {mine:.2f} ms, {apart:.2f} ms apart",
        )


def guidellm(server: Server) -> Iterator[Promise]:
    out = server.work / "guidellm.json"
    call = [
        _python("guidellm").replace("/python", "/guidellm"), "run",
        "--backend", f"kind=openai_http,target={server.url},model={MODEL}",
        "--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=20",
        "--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}",
        "--data", "kind=synthetic_text,prompt_tokens=128,output_tokens=16",
        "--output", f"kind=json,path={out}", "--disable-console-interactive",
    ]  # fmt: skip
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=CLIENT_S, cwd=server.work, env=_tokenizer(), check=False
    )
    if not out.exists():
        yield False, f"guidellm: {(done.stdout + done.stderr)[-1500:]}"
        return
    totals = json.loads(out.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    yield totals["successful"] >= 20 and not totals["errored"], f"guidellm: {totals}"


def schemathesis(server: Server) -> Iterator[Promise]:
    call = [
        _python("schemathesis").replace("/python", "/schemathesis"), "run", f"{server.url}/openapi.json",
        "-c", "not_a_server_error", "-n", "25", "--phases", "examples,coverage,fuzzing", "--max-time", "150",
        "--request-timeout", "30",
    ]  # fmt: skip
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=CLIENT_S, cwd=server.work, check=False
    )
    counted = [line.strip() for line in done.stdout.splitlines() if "generated" in line]
    yield done.returncode == 0, f"schemathesis, no 5xx: {counted or done.stdout[-800:]}"


def leave(server: Server) -> Iterator[Promise]:
    """100 clients that leave in mid-stream, twice, since the first time also warms what stays."""
    asyncio.run(_leave(server, 100))
    before = server.rss_mib()
    asyncio.run(_leave(server, 100))
    grown = server.rss_mib() - before
    time.sleep(1.5)  # engines are sampled twice a second
    state = server.state()
    busy = {e["name"]: (e["orders"], e["running"], e["queued"]) for e in state["engines"]}
    idle = all(counts == (0, 0, 0) for counts in busy.values()) and not state["requests"]["in_flight"]
    yield idle, f"after 200 clients left in mid-stream: orders, running, queued {busy}"
    yield grown < 8, f"the controller grew by {grown:.1f} MiB with the second 100"
    quiet = _bytes(server)
    time.sleep(2)
    yield _bytes(server) - quiet < 50_000, f"{_bytes(server) - quiet} bytes crossed the links in 2 s then"


def _bytes(server: Server) -> int:
    return sum(link["bytes"] for link in server.state()["links"])


async def _leave(server: Server, clients: int) -> None:
    async def client(number: int, session: aiohttp.ClientSession) -> None:
        prompt = "x" * (700 if number % 4 == 0 else 60)
        body = {"prompt": prompt, "max_tokens": 2000, "stream": True, "ignore_eos": True}
        async with session.post(f"{server.url}/v1/completions", json=body) as response:
            await response.content.readuntil(b"\n\n") if number % 2 else await asyncio.sleep(0.1)

    async def hurried(number: int, session: aiohttp.ClientSession) -> None:
        try:
            async with asyncio.timeout(8):
                await client(number, session)
        except TimeoutError:
            pass  # it left while it still waited for its first token

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(hurried(number, session) for number in range(clients)))


def crowd(server: Server) -> Iterator[Promise]:
    """200 streams at once, then 400."""
    for clients in (200, 400):
        statuses = asyncio.run(_crowd(server, clients))
        counts = {status: statuses.count(status) for status in sorted(set(statuses), key=str)}
        yield set(counts) <= {200, 429} and counts.get(200, 0) >= 200, f"{clients} streams at once: {counts}"


async def _crowd(server: Server, clients: int) -> list[int | str]:
    async def client(session: aiohttp.ClientSession) -> int | str:
        body = {"prompt": "Hello", "max_tokens": 8, "stream": True, "ignore_eos": True}
        async with session.post(f"{server.url}/v1/completions", json=body) as response:
            text = await response.text()
            if response.status == 200 and not text.endswith("data: [DONE]\n\n"):
                return "cut off"
            return response.status

    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        return await asyncio.gather(*(client(session) for _ in range(clients)))


CHECKS: dict[str, Callable[[Server], Iterator[Promise]]] = {
    "curl": curl,
    "openai": openai,
    "aiperf": aiperf,
    "aiperf-trace": aiperf_trace,
    "guidellm": guidellm,
    "schemathesis": schemathesis,
    "leave": leave,
    "crowd": crowd,
}


# -- environments ------------------------------------------------------------------------------


def _python(client: str) -> str:
    """The interpreter of a client's own environment, made when it is not there."""
    folder = HOME / client
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        for package in PACKAGES[client]:
            subprocess.run([folder / "bin/pip", "install", "-q", package], check=True)
        (folder / "ready").touch()
    return str(folder / "bin/python")


TOKENIZER, SNAPSHOT = "prfaas-lab/byt5", "0" * 40


def _tokenizer() -> dict[str, str]:
    """The environment in which ByT5's tokenizer is found under a hub name, without a network: workers of
    aiperf take no folder."""
    cache = HOME / "hf/hub/models--prfaas-lab--byt5"
    folder = cache / "snapshots" / SNAPSHOT
    if not (cache / "refs/main").exists():
        code = f"from transformers import ByT5Tokenizer; ByT5Tokenizer().save_pretrained({str(folder)!r})"
        subprocess.run([_python("aiperf"), "-c", code], check=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 384}))
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs/main").write_text(SNAPSHOT)
    return {**os.environ, "HF_HOME": str(HOME / "hf"), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scenario", default="scenarios/smoke.yaml")
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--only", help=f"some of {','.join(CHECKS)}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
