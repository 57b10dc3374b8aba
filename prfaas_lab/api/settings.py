"""How an endpoint listens, and what it bears."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """Every limit holds for one call, except `max_requests`, which holds for all at once."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 lets the system choose one."""
    api_key: str | None = field(default=None, repr=False)
    max_requests: int = 256
    max_prompt_tokens: int = 131072
    max_output_tokens: int = 8192
    max_body_bytes: int = 16 * 2**20
    default_output_tokens: int = 16
    default_chat_tokens: int = 256
    write_timeout_s: float = 60.0
    """A client that reads nothing for this long is given up."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str | None) -> bool:
    """Of an address, or the name every machine gives itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address((host or "").partition("%")[0]).is_loopback
    except ValueError:
        return False
