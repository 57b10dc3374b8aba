"""What pyroute2 does not say of netem, htb and bfifo, in its own extension point for `tc`.

pyroute2 0.9's netem has times of 32 bits and knows neither delay distributions nor Gilbert-Elliott;
its htb always computes rate tables, which no kernel of today reads (half the time of a change), and
cannot say the slowest rates; it has no bfifo. Layouts are those of linux/pkt_sched.h.
"""

from __future__ import annotations

from types import SimpleNamespace

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl.tcmsg import plugins, sched_htb, sched_netem


class NetemOptions(nla):  # type: ignore[misc]
    """Every option of netem that the kernel has, but for time slots."""

    fields = sched_netem.options.fields
    nla_map = (
        ("TCA_NETEM_UNSPEC", "none"),
        ("TCA_NETEM_CORR", "netem_corr"),
        ("TCA_NETEM_DELAY_DIST", "array(int16)"),
        ("TCA_NETEM_REORDER", "netem_reorder"),
        ("TCA_NETEM_CORRUPT", "netem_corrupt"),
        ("TCA_NETEM_LOSS", "netem_loss"),
        ("TCA_NETEM_RATE", "netem_rate"),
        ("TCA_NETEM_ECN", "uint32"),
        ("TCA_NETEM_RATE64", "uint64"),
        ("TCA_NETEM_PAD", "hex"),
        ("TCA_NETEM_LATENCY64", "int64"),
        ("TCA_NETEM_JITTER64", "int64"),
    )
    netem_corr = sched_netem.options.netem_corr
    netem_reorder = sched_netem.options.netem_reorder
    netem_corrupt = sched_netem.options.netem_corrupt
    netem_rate = sched_netem.options.netem_rate

    class netem_loss(nla):  # type: ignore[misc]
        """A loss model in place of independent losses."""

        nla_flags = NLA_F_NESTED
        nla_map = (("NETEM_LOSS_UNSPEC", "none"), ("NETEM_LOSS_GI", "hex"), ("NETEM_LOSS_GE", "gilbert"))

        class gilbert(nla):  # type: ignore[misc]
            """Gilbert-Elliott: odds of going bad (p) and good again (r), of passing when bad (h), and of
            loss when good (k1)."""

            fields = (("p", "I"), ("r", "I"), ("h", "I"), ("k1", "I"))


class HtbOptions(nla):  # type: ignore[misc]
    """htb's tree and its classes, without rate tables."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        ("TCA_HTB_UNSPEC", "none"),
        ("TCA_HTB_PARMS", "htb_parms"),
        ("TCA_HTB_INIT", "htb_glob"),
        ("TCA_HTB_CTAB", "hex"),
        ("TCA_HTB_RTAB", "hex"),
        ("TCA_HTB_DIRECT_QLEN", "uint32"),
        ("TCA_HTB_RATE64", "uint64"),
        ("TCA_HTB_CEIL64", "uint64"),
    )

    class htb_glob(nla):  # type: ignore[misc]
        fields = sched_htb.options.htb_glob.fields

    class htb_parms(nla):  # type: ignore[misc]
        fields = sched_htb.options.htb_parms.fields


class BfifoOptions(nla):  # type: ignore[misc]
    """The queue limit, in bytes."""

    fields = (("limit", "I"),)


def register() -> None:
    """Let `IPRoute.tc(..., options=...)` of these kinds speak so, in the whole process."""
    for kind, options in (("netem", NetemOptions), ("htb", HtbOptions), ("bfifo", BfifoOptions)):
        plugins[kind] = SimpleNamespace(options=options)
