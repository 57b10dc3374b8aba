"""`prfaas-lab serve` as its user runs it: real engines, a shaped link, a client, Ctrl-C, nothing left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
START_S, END_S = 300, 300

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
]


class Running:
    """A server, started as a user starts it."""

    def __init__(self, out: Path, *arguments: str) -> None:
        self.out = out
        self.log = out.with_suffix(".log")
        command = [sys.executable, "-m", "prfaas_lab", "serve", *arguments, "--headless", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--allow-unfaithful", "--out", str(out)],
            cwd=ROOT, stdout=self.log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.url = self._url()

    def _url(self) -> str:
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            if found := re.search(r"serving \S+ at (\S+)/v1", self.log.read_text()):
                return found[1]
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)

    def ctl(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "prfaas_lab", "ctl", *arguments, "--url", self.url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
        return json.loads(done.stdout)

    def stop(self, number: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(END_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("serve") / "run", "tests/lab/few.yaml")
    yield running
    running.stop(signal.SIGKILL)


def greedy(server: Running, prompt: str) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    answer: dict[str, Any] = server.post("/v1/completions", body)
    return answer


def test_where_prefill_runs_does_not_change_the_answer(server: Running) -> None:
    prompt = "long " * 100
    server.ctl("policy", "remote-all")
    remote = greedy(server, prompt)
    server.ctl("policy", "local-only")
    local = greedy(server, prompt)
    assert [answer["prfaas"][0]["offloaded"] for answer in (remote, local)] == [True, False]
    assert remote["choices"] == local["choices"]
    assert remote["usage"]["completion_tokens"] == 12


def test_a_seed_draws_the_same_and_another_does_not(server: Running) -> None:
    def drawn(seed: int) -> str:
        body = {"prompt": "Hello", "max_tokens": 16, "seed": seed, "temperature": 1, "ignore_eos": True}
        text: str = server.post("/v1/completions", body)["choices"][0]["text"]
        return text

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_link_is_changed_from_the_command_line(server: Running) -> None:
    server.ctl("link", "wan", "--delay", "40ms", "--source", "prfaas-east")
    delays = {link["source"]: link["delay_ms"] for link in server.ctl("state")["links"]}
    assert delays["prfaas-east"] == 40
    assert delays["local-west"] == 10


def test_ctrl_c_ends_it_and_leaves_files_and_nothing_else(server: Running) -> None:
    assert server.stop(signal.SIGINT) == 0
    summary = json.loads((server.out / "summary.json").read_text())
    assert summary["completed"] == summary["submitted"] == 5
    assert (summary["mode"], summary["stopped"]) == ("serve", "SIGINT")
    events = (server.out / "events.jsonl").read_text()
    netns = re.search(r'"netns": ?"(pl-\w+)-', events)
    assert netns is not None
    left = os.listdir("/run/netns") if os.path.isdir("/run/netns") else []
    assert not [name for name in left if name.startswith(netns[1])]
