"""The loop of the `relay` shaper: a process of its own, started by `packet_process`.

It ends when its control socket closes, or when the process that started it dies.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from collections.abc import Callable
from random import Random
from typing import Any

from prfaas_lab.fabric.link_queue import Conditions
from prfaas_lab.fabric.packet_child import Parent, allow_descriptors, be_prompt, publish
from prfaas_lab.fabric.relay_connection import SOCKET_BUFFER_BYTES, join
from prfaas_lab.fabric.relay_lane import Lane

LISTEN_BACKLOG = 512
SPARE_DESCRIPTORS = 64
REST_S = 1e-4
"""Pause after every pass that moved something, so that more comes at a time."""

Heed = Callable[[int, float], None]


class Relay:
    """All lanes, listeners and sockets."""

    def __init__(self, counters: memoryview, seed: int) -> None:
        self._counters, self._seed = counters, seed
        self.lanes: dict[int, Lane] = {}
        """By slot."""
        self._listeners: list[socket.socket] = []
        self._heeds: dict[int, Heed] = {}
        self._events: dict[int, int] = {}
        self._epoll = select.epoll()
        self._most_sockets = allow_descriptors() - SPARE_DESCRIPTORS

    @property
    def descriptor(self) -> int:
        """Readable when `pass_bytes` has something to do before the next is due."""
        return self._epoll.fileno()

    def serve(self, request: dict[str, Any], _: list[int]) -> None:
        """Do what a request of `RelayShaper` says."""
        match request["do"]:
            case "change":
                self._change(request["slot"], Conditions(*request["conditions"]))
            case "listen":
                forward = tuple(self.lanes[slot] for slot in request["forward"])
                backward = tuple(self.lanes[slot] for slot in request["backward"])
                self._listen(tuple(request["listen"]), tuple(request["target"]), forward, backward)

    def watch(self, sock: socket.socket, events: int, heed: Heed) -> None:
        """Part of `Poller`. Without events a socket is not registered at all: a hang-up, which cannot
        be masked, would wake us without end."""
        descriptor, before = sock.fileno(), self._events.get(sock.fileno(), 0)
        self._heeds[descriptor], self._events[descriptor] = heed, events
        if events and not before:
            self._epoll.register(descriptor, events)
        elif events != before and events:
            self._epoll.modify(descriptor, events)
        elif before and not events:
            self._epoll.unregister(descriptor)

    def forget(self, sock: socket.socket) -> None:
        """Part of `Poller`."""
        if self._events.pop(sock.fileno(), 0):
            self._epoll.unregister(sock.fileno())
        self._heeds.pop(sock.fileno(), None)

    def next_due(self) -> float:
        return min((lane.queue.next_due() for lane in self.lanes.values()), default=math.inf)

    def pass_bytes(self, now: float) -> bool:
        """Read and write what sockets allow, move what is due. False when there was neither."""
        events = self._epoll.poll(0)
        for descriptor, mask in events:
            heed = self._heeds.get(descriptor)
            if heed is not None:
                heed(mask, now)
        due = [lane for lane in self.lanes.values() if lane.queue.next_due() <= now]
        for lane in due:
            lane.release(now)
        for lane in self.lanes.values():
            publish(self._counters, lane.slot, lane.queue)
        return bool(events or due)

    def _change(self, slot: int, conditions: Conditions) -> None:
        if slot in self.lanes:
            lane, now = self.lanes[slot], time.monotonic()
            lane.release(now)  # what crossed before the answer is counted before the answer
            lane.change(conditions, now)
            publish(self._counters, slot, lane.queue)
        else:
            self.lanes[slot] = Lane(slot, conditions, Random(self._seed + slot))

    def _listen(
        self, address: tuple[str, int], target: tuple[str, int],
        forward: tuple[Lane, ...], backward: tuple[Lane, ...],
    ) -> None:  # fmt: skip
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Small buffers, so that a sender soon feels a link that is full.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        listener.setblocking(False)
        try:
            listener.bind(address)
            listener.listen(LISTEN_BACKLOG)
        except OSError as error:
            listener.close()
            raise OSError(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}") from error

        def accept(_: int, now: float) -> None:
            with contextlib.suppress(OSError):  # the client has gone again
                client, _peer = listener.accept()
                if len(self._heeds) < self._most_sockets:
                    join(client, target, forward, backward, self, now)
                else:
                    client.close()

        self._listeners.append(listener)
        self.watch(listener, select.EPOLLIN, accept)


def run(parent: Parent, relay: Relay) -> None:
    """Relay until nobody is left to relay for."""
    moved = False
    while not parent.gone:
        if moved:
            time.sleep(REST_S)
        due = relay.next_due()
        wait_s = None if due == math.inf else max(0.0, due - time.monotonic())
        readable, _, _ = select.select([*parent.descriptors, relay.descriptor], [], [], wait_s)
        parent.heed(readable, relay.serve)
        moved = relay.pass_bytes(time.monotonic())


def main() -> None:
    be_prompt()
    parent = Parent()
    run(parent, Relay(parent.counters, parent.seed))


if __name__ == "__main__":
    main()
