"""TCP's own counters of one namespace, kept open so that reading them is one system call."""

from __future__ import annotations

import os

from prfaas_lab.fabric.namespaces import call_in

READ_BYTES = 8192


class TcpCounters:
    """`/proc/net/snmp` of a namespace; the open file stays bound to it."""

    def __init__(self, netns: str) -> None:
        # thread-self, because only the thread that opens it is inside the namespace.
        self._file = call_in(netns, lambda: os.open("/proc/thread-self/net/snmp", os.O_RDONLY | os.O_CLOEXEC))

    @property
    def retransmitted(self) -> int:
        """Segments sent again since the namespace was made."""
        names, values = (
            line.split()
            for line in os.pread(self._file, READ_BYTES, 0).decode().splitlines()
            if line.startswith("Tcp:")
        )
        return int(values[names.index("RetransSegs")])

    def close(self) -> None:
        os.close(self._file)
