"""The processes of a run's engines and verifiers: forked by its zygote, owned by the run."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from prfaas_lab.engine.corruption import Corruption
from prfaas_lab.fabric.network import Fabric
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.fabric.plan import DATA_PORT
from prfaas_lab.lab.cache_share import cache_share
from prfaas_lab.lab.control_client import ControlClient
from prfaas_lab.lab.engines import Engine
from prfaas_lab.lab.executors import batch_of
from prfaas_lab.lab.orders import EngineOrder, VerifierOrder
from prfaas_lab.lab.pacing import Pacing
from prfaas_lab.lab.processes import Processes, last_words
from prfaas_lab.lab.starting import convertible
from prfaas_lab.lab.ways import Ways
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.spec.scenario import Resolved


class EngineProcesses:
    """`engines` has those that were started, by name. Each process writes a log into `out`."""

    def __init__(
        self, resolved: Resolved, *, ledger: Ledger, fabric: Fabric, processes: Processes,
        ownership: Ownership, pacing: Pacing | None, out: Path, corrupt: Corruption | None,
    ) -> None:  # fmt: skip
        self.engines: dict[str, Engine] = {}
        self._resolved, self._ledger, self._fabric = resolved, ledger, fabric
        self._ways = Ways(fabric)
        self._processes, self._ownership, self._pacing = processes, ownership, pacing
        self._out, self._corrupt = out, corrupt

    async def start(self, stack: AsyncExitStack) -> None:
        """All engines at once, each in its namespace; they are ready when their control sockets answer."""
        key = secrets.token_hex(32)
        topology = self._resolved.topology
        names = [(name, dc) for dc in topology.datacenters for name in topology.engine_names(dc)]
        self._phase(0, len(names))
        async with asyncio.TaskGroup() as group:
            for name, datacenter in names:
                group.create_task(self._start(name, datacenter, key, len(names), stack), name=name)

    async def start_verifier(self, number: int) -> tuple[str, str]:
        """A process that generates alone, from the same weights; its name and control socket."""
        name = f"verifier-{number}"
        order = VerifierOrder(
            name=name,
            control_socket=str(self._ownership.sockets / f"{name}.sock"),
            log=self._log_of(name),
            chunk_tokens=self._resolved.scenario.engine.chunk,
        )
        pid = await self._processes.fork(order, self._resolved.scenario.engine.ready_timeout)
        self._ownership.claim_process(pid)
        return order.name, order.control_socket

    def exited(self, name: str, status: str) -> None:
        """A process has ended that was not told to."""
        words = last_words(self._log_of(name))
        self._ledger.record(
            ev.EngineDied(at_s=self._ledger.now(), engine=name, exit_status=status, last_words=words)
        )
        if name in self.engines:
            self.engines[name].alive = False

    async def _start(self, name: str, datacenter: str, key: str, total: int, stack: AsyncExitStack) -> None:
        order = self._order(name, datacenter, key)
        pid = await self._processes.fork(order, self._resolved.scenario.engine.ready_timeout)
        self._ownership.claim_process(pid)
        client = await stack.enter_async_context(ControlClient(name, order.control_socket))
        self.engines[name] = Engine(
            name=name,
            datacenter=datacenter,
            role=order.role,
            client=client,
            capacity=batch_of(order) if order.role == "decode" else 1,
            other_capacity=batch_of(order) if order.role == "prefill" and order.convertible else 1,
        )
        self._ledger.record(
            ev.EngineStarted(
                at_s=self._ledger.now(),
                engine=name,
                datacenter=datacenter,
                role=order.role,
                netns=order.netns or "",
                pid=pid,
            )
        )
        self._phase(len(self.engines), total)

    def _order(self, name: str, datacenter: str, key: str) -> EngineOrder:
        scenario, node = self._resolved.scenario, self._fabric.nodes[name]
        return EngineOrder(
            name=name,
            role=self._resolved.topology.engine_names(datacenter)[name],
            netns=node.netns,
            control_socket=str(self._ownership.sockets / f"{name}.sock"),
            log=self._log_of(name),
            host=node.address,
            port=DATA_PORT,
            key_hex=key,
            settings=scenario.engine,
            transport=scenario.transport,
            path=self._ways.hint(datacenter),
            corrupt=self._corrupt,
            cache=cache_share(self._resolved, datacenter, disk_path=self._ownership.spill),
            pace=self._pacing.of(datacenter) if self._pacing else None,
            convertible=convertible(self._resolved, datacenter),
        )

    def _log_of(self, name: str) -> str:
        return str(self._out / f"{name}.log")

    def _phase(self, done: int, total: int) -> None:
        self._ledger.record(ev.PhaseChanged(at_s=self._ledger.now(), name="engines", done=done, total=total))
