"""KVCache transfer: layer by layer over several TCP connections, checked, resumed, and metered.

`KVSender` (prefill engine) and `KVReceiver` (decode engine) are the two ends; `Limits` the settings
of either; `errors` how a transfer can fail.
"""

from prfaas_lab.transport.incoming import Incoming, Received
from prfaas_lab.transport.limits import Limits, PathHint
from prfaas_lab.transport.outgoing import Outgoing, Sent
from prfaas_lab.transport.receiver import KVReceiver
from prfaas_lab.transport.sender import KVSender

__all__ = ["Incoming", "KVReceiver", "KVSender", "Limits", "Outgoing", "PathHint", "Received", "Sent"]
