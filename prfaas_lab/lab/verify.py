"""The check on the whole: outputs of the disaggregated deployment against one-process generation."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from prfaas_lab.lab.control_client import ControlClient
from prfaas_lab.lab.orders import VerifyOrder
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.workload.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A completed request with the tokens that its client got."""

    request: Request
    tokens: tuple[int, ...]


def chosen(request_id: str, share: float, seed: int) -> bool:
    """Whether a request belongs to the verified share; the same for the same seed."""
    digest = hashlib.blake2b(f"{seed}/{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


async def verify(
    answers: Iterable[Answer], verifiers: Iterable[tuple[str, str]], ledger: Ledger, *, lossy: bool = False
) -> None:
    """Compare every answer, spread over the verifiers, given as (name, control socket). `lossy`: KVCache
    crossed in a form that may alter them.

    Raises EngineError when a verifier dies: an unfinished check proves nothing.
    """
    waiting = list(answers)
    total = len(waiting)
    ledger.record(ev.PhaseChanged(at_s=ledger.now(), name="verifying", done=0, total=total))

    async def work(client: ControlClient) -> None:
        while waiting:
            await _verify_one(waiting.pop(), client, ledger, lossy)
            done = ledger.tally.verified.total()
            ledger.record(ev.PhaseChanged(at_s=ledger.now(), name="verifying", done=done, total=total))

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for name, control_socket in verifiers:
            client = await stack.enter_async_context(ControlClient(name, control_socket))
            group.create_task(work(client), name=name)


async def _verify_one(answer: Answer, client: ControlClient, ledger: Ledger, lossy: bool) -> None:
    request = answer.request
    order = VerifyOrder(request_id=request.id, prompt=request.prompt, tokens=answer.tokens)
    result = await client.ask("/verify", order)
    outcome = "differs" if lossy and result["outcome"] == "mismatch" else result["outcome"]
    ledger.record(
        ev.RequestVerified(
            at_s=ledger.now(),
            request_id=request.id,
            outcome=outcome,
            detail=result["detail"],
            compared_tokens=len(answer.tokens),
            equal_tokens=result["equal_tokens"],
        )
    )
