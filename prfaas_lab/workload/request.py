"""One request of a workload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to be served. `arrival_s` counts from the workload's start; in a closed loop it is
    None and the driver sends when a client is free."""

    id: str
    arrival_s: float | None
    prompt: tuple[int, ...]
    output_tokens: int

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)
