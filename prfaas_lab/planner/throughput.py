"""The paper's throughput model, equations 1-8 (arXiv 2604.15039, section 3), as pure functions.

Rates are requests per second, lengths uncached tokens, bandwidths bits per second. Every function
takes numbers or arrays that broadcast, so that one call evaluates a whole grid.

Which T goes in decides the mode: `paper` puts T at the class's mean length in, as equations 3-4 are
written; `exact` the mean of T over the class, what a running system pays. T is convex, so the paper's
rates are never below the exact ones (Jensen).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prfaas_lab.model.profile import Floats, Profile

Number = npt.ArrayLike


def phi_kv(profile: Profile, tokens: Number) -> Floats:
    """Equation 1: Phi_kv(l) = S_kv(l) / T_prefill(l), the bit/s of KVCache one instance makes."""
    return np.asarray(8 * profile.kvcache.many(tokens) / profile.prefill.many(tokens))


def fleet_egress_bps(
    gpus: Number, gpus_per_instance: Number, mean_kv_bytes: Number, mean_prefill_s: Number
) -> Floats:
    """Equation 2: B_out = (N / P) * E[S_kv] / E[T_prefill], the egress that keeps N GPUs busy."""
    return np.asarray(
        np.divide(gpus, gpus_per_instance) * 8 * np.asarray(mean_kv_bytes) / np.asarray(mean_prefill_s)
    )


def theta_prfaas(instances: Number, prefill_s: Number, kv_bytes: Number, egress_bps: Number) -> Floats:
    """Equation 3: Theta_prfaas = min(N_prfaas / T_prefill, B_out / S_kv), compute and egress overlapped.

    `egress_bps` may be inf. Several PrfaaS clusters add up, each with its own hardware and bandwidth.
    """
    compute = np.divide(instances, prefill_s)
    link = np.asarray(egress_bps) / (8 * np.asarray(kv_bytes))
    return np.asarray(np.minimum(compute, link))


def theta_pd_p(instances: Number, prefill_s: Number) -> Floats:
    """Equation 4: Theta_pd-p = N_p / T_prefill(l_short), on the local hardware's curve."""
    return np.divide(instances, prefill_s)


def theta_pd_d(instances: Number, bs_max: Number, step_s: Number, output_tokens: Number) -> Floats:
    """Equation 5: Theta_pd-d = N_d * BS_max / (T_decode * L_out)."""
    return np.asarray(
        np.asarray(instances) * np.asarray(bs_max) / (np.asarray(step_s) * np.asarray(output_tokens))
    )


def lambda_max(prfaas: Number, pd_p: Number, pd_d: Number, p: Number) -> Floats:
    """Equation 6: Lambda_max = min(Theta_prfaas / p, Theta_pd-p / (1 - p), Theta_pd-d).

    A class that never occurs (p of 0 or 1) binds nothing.
    """
    share = np.asarray(p, dtype=np.float64)
    return np.minimum(np.minimum(per_share(prfaas, share), per_share(pd_p, 1 - share)), pd_d)


def threshold_imbalance(prfaas: Number, pd_p: Number, p: Number) -> Floats:
    """Equation 7 as a difference, 0 at the optimal t: Theta_prfaas / p - Theta_pd-p / (1 - p).

    Rises with t: a higher threshold relieves PrfaaS and loads the local cluster.
    """
    share = np.asarray(p, dtype=np.float64)
    return np.asarray(per_share(prfaas, share) - per_share(pd_p, 1 - share))


def role_imbalance(prfaas: Number, pd_p: Number, pd_d: Number) -> Floats:
    """Equation 8 as a difference, 0 at the optimal N_p:N_d: Theta_prfaas + Theta_pd-p - Theta_pd-d.

    Negative means prefill-bound, positive decode-bound.
    """
    return np.asarray(np.asarray(prfaas) + np.asarray(pd_p) - np.asarray(pd_d))


def per_share(theta: Number, share: Number) -> Floats:
    """The arrival rate that loads a stage fully when it gets `share` of it; inf when it gets none."""
    rate, part = np.broadcast_arrays(np.asarray(theta, dtype=np.float64), np.asarray(share, dtype=np.float64))
    loads = np.full(rate.shape, np.inf)
    np.divide(rate, part, out=loads, where=part > 1e-12)
    return loads
