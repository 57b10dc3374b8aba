"""What computes inside an engine process, as its order says. torch is imported only where it is used."""

from __future__ import annotations

import random
from typing import Any

from prfaas_lab.engine.corruption import corruption_filter
from prfaas_lab.engine.executor import DecodeExecutor, PrefillExecutor
from prfaas_lab.engine.paced_executor import PacedDecode, PacedPrefill
from prfaas_lab.lab.orders import EngineOrder, Pace
from prfaas_lab.model.layout import CacheLayout
from prfaas_lab.model.paced_layout import paced_layout


def prefill_executor(order: EngineOrder, model: Any) -> PrefillExecutor:
    """For the model that the zygote loaded, or for a profile."""
    layout = _layout(order, model)
    outgoing = corruption_filter(order.corrupt, layout) if order.corrupt else None
    if order.pace is not None:
        profile, rng = order.pace.profile, random.Random(order.name)
        return PacedPrefill(profile, layout, time_scale=order.pace.time_scale, rng=rng, outgoing=outgoing)
    from prfaas_lab.engine.torch_executor import TorchPrefill

    return TorchPrefill(model, layout, outgoing)


def decode_executor(order: EngineOrder, model: Any) -> DecodeExecutor:
    """For the model that the zygote loaded, or for a profile."""
    layout = _layout(order, model)
    keep_answers = order.cache is not None and order.cache.keeps_answers
    if order.pace is not None:
        return PacedDecode(
            order.pace.profile, layout, time_scale=order.pace.time_scale, keep_answers=keep_answers
        )
    from prfaas_lab.engine.torch_executor import TorchDecode

    return TorchDecode(model, layout, max_batch=order.settings.max_batch, keep_answers=keep_answers)


def batch_of(order: EngineOrder) -> int:
    """Sequences that a decode engine takes at a time."""
    return order.settings.max_batch if order.pace is None else order.pace.profile.bs_max


def _layout(order: EngineOrder, model: Any) -> CacheLayout:
    if order.pace is not None:
        return _paced(order.pace, order.settings.chunk)
    from prfaas_lab.model.torch_cache import layout_of

    layout: CacheLayout = layout_of(model, order.settings.chunk)
    return layout


def _paced(pace: Pace, chunk_tokens: int) -> CacheLayout:
    return paced_layout(pace.model.token_bytes, pace.model.state_bytes, chunk_tokens)
