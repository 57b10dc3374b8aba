"""Waiting for a server: the M/G/k correction that the paper's steady state leaves out.

Erlang's C formula for Poisson arrivals at k servers, and Allen and Cunneen's correction for general
gaps and services (A. O. Allen, Probability, Statistics, and Queueing Theory, 2nd ed. 1990, 5.3):
Wq = Wq(M/M/k) * (c_a^2 + c_s^2) / 2. Exact for M/M/k, and for M/G/1 (Pollaczek-Khinchine). The waiting
time's tail is taken as exponential, with the chance to wait at all left as Erlang's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_NO_WAIT_SERVERS = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """P(W > x) = chance * exp(-x / mean_if_waiting_s)."""

    chance: float
    mean_if_waiting_s: float

    @property
    def mean_s(self) -> float:
        """E[W]; inf when the queue is not stable."""
        return self.chance * self.mean_if_waiting_s if self.chance else 0.0


NO_WAIT = Wait(chance=0.0, mean_if_waiting_s=0.0)


def erlang_c(servers: int, offered: float) -> float:
    """The chance that a Poisson arrival waits, `offered` being arrival rate times mean service time."""
    if offered >= servers:
        return 1.0
    if offered <= 0 or servers > _NO_WAIT_SERVERS:
        return 0.0
    blocking = 1.0  # Erlang's B by its recursion, which cannot overflow as the factorials would
    for k in range(1, servers + 1):
        blocking = offered * blocking / (k + offered * blocking)
    return blocking / (1 - offered / servers * (1 - blocking))


def wait(
    *, rate: float, servers: int, service_s: float, service_square: float, arrival_cv2: float = 1.0
) -> Wait:
    """The wait at `servers` alike, fed `rate` a second; `service_square` is E[S^2] in s^2."""
    offered = rate * service_s
    if rate <= 0 or service_s <= 0:
        return NO_WAIT
    if offered >= servers:
        return Wait(chance=1.0, mean_if_waiting_s=math.inf)
    service_cv2 = max(0.0, service_square / service_s**2 - 1)
    mean_if_waiting_s = service_s / (servers - offered) * (arrival_cv2 + service_cv2) / 2
    return Wait(chance=erlang_c(servers, offered), mean_if_waiting_s=mean_if_waiting_s)
