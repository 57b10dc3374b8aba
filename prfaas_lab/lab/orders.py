"""What the controller tells its processes: the messages of zygote, engines and verifiers.

All travel as JSON over Unix sockets that only this run can reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from prfaas_lab.engine.corruption import Corruption
from prfaas_lab.lab.cache_news import PromptNames
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.model.profile import Profile
from prfaas_lab.spec.scenario import EngineSettings, Model, TransportSettings
from prfaas_lab.spec.topology import PrefixCache, Spec
from prfaas_lab.transport.limits import PathHint
from prfaas_lab.workload.request import GREEDY, Sampling

HANDOVER_LAYER = 0xFFFF
HANDOVER_BYTES = 8


def handover_key() -> SegmentKey:
    """The segment that ends every transfer: the first token, which only prefill's logits know."""
    return SegmentKey(layer=HANDOVER_LAYER, part=0, chunk=0)


class PacedModel(Spec):
    """What paced engines pretend to run: its name, and its KVCache shrunk by the scenario's `scale`."""

    title: str
    token_bytes: int
    state_bytes: int


class Pace(Spec):
    """What a paced engine keeps to. Its durations are the profile's times `time_scale`."""

    model: PacedModel
    profile: Profile
    time_scale: float


class LoadModel(Spec):
    """First message to the zygote. With `paced` there is nothing to load, and torch stays out."""

    model: Model
    chunk_tokens: int
    paced: PacedModel | None = None


class ModelReady(Spec):
    """The zygote's answer: what the controller must know of the model without importing torch."""

    kind: Literal["ready"] = "ready"
    title: str
    vocab_size: int | None
    """None when no tokens are computed."""
    parameters: int
    token_bytes: int
    state_bytes: int
    load_s: float


class CacheShare(Spec):
    """An engine's share of its datacenter's prefix cache."""

    memory_bytes: int
    disk_bytes: int = 0
    disk_path: str | None = None
    """A directory of the run, in which engines make their own."""
    settings: PrefixCache
    """Of the datacenter; the sizes in it are not this engine's."""
    keeps_answers: bool = False
    """Whether decode engines hand over what they computed."""


class EngineOrder(Spec):
    """Become an engine."""

    kind: Literal["engine"] = "engine"
    name: str
    role: Literal["prefill", "decode"]
    netns: str | None
    control_socket: str
    log: str
    host: str
    port: int
    key_hex: str
    settings: EngineSettings
    transport: TransportSettings
    path: PathHint | None = None
    corrupt: Corruption | None = None
    cache: CacheShare | None = None
    pace: Pace | None = None
    convertible: bool = False
    """Whether it must be able to take the other role too."""


class VerifierOrder(Spec):
    """Become a verifier: one-process generation to compare with."""

    kind: Literal["verifier"] = "verifier"
    name: str
    control_socket: str
    log: str
    chunk_tokens: int
    netns: None = None


Order = Annotated[EngineOrder | VerifierOrder, Field(discriminator="kind")]


class Forked(Spec):
    kind: Literal["forked"] = "forked"
    name: str
    pid: int


class Exited(Spec):
    kind: Literal["exited"] = "exited"
    name: str
    pid: int
    status: str


class Refused(Spec):
    """The zygote cannot go on; `text` says why in words a person can use."""

    kind: Literal["refused"] = "refused"
    text: str


Answer = Annotated[ModelReady | Forked | Exited | Refused, Field(discriminator="kind")]


@dataclass(slots=True, kw_only=True)
class PrefillOrder:
    """Compute a prompt, and send its KVCache to a decode engine. (Frozen, it would take thrice as long to
    make, and a simulation makes a million.)"""

    request_id: str
    prompt: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    decode_host: str
    decode_port: int
    sampling: Sampling = GREEDY
    blocks: PromptNames | None = None
    held_tokens: int = 0
    """How much of the growing cache the decode engine holds already."""
    tell_all: bool = False
    """News of the prefix cache in full, since some was lost."""
    submitted_at: float | None = None
    """When its request came, on the machine's clock: orders of requests that came together arrive in any
    order, and are served in this one."""
    since: float | None = None
    """What its stage `withdrawn` said, if it comes back to its place in line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawOrder:
    """Give back a prompt that waits for its prefill, or its KVCache while it waits to be sent. The stages of
    its own order tell whether it did."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RedirectOrder:
    """Send KVCache that was given back to this decode engine, which holds so much of it."""

    request_id: str
    decode_host: str
    decode_port: int
    held_tokens: int


@dataclass(slots=True, kw_only=True)
class DecodeOrder:
    """Reserve memory, take in a prompt's KVCache, and generate."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    sampling: Sampling = GREEDY
    blocks: PromptNames | None = None
    tell_all: bool = False


class ReceiveCopy(Spec):
    """Take in a prefix from another engine's cache."""

    copy_id: str
    blocks: PromptNames
    decoded_from: int | None = None
    """The first token of the blocks that a decode engine completed."""


class SendCopy(Spec):
    """Send a prefix to another engine's cache, which holds the blocks of `held_tokens` already."""

    copy_id: str
    blocks: PromptNames
    held_tokens: int
    host: str
    port: int
    answer_of: str | None = None
    """The request whose answer ends the prefix: what its decode engine computed of it goes along."""


class VerifyOrder(Spec):
    request_id: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


EngineTask = PrefillOrder | WithdrawOrder | RedirectOrder | DecodeOrder | ReceiveCopy | SendCopy | VerifyOrder
"""What a process that runs is asked to do."""
