"""The real hybrid model: built from a seed, or loaded from a folder or the local hub cache.

What can be served is a causal language model whose layers cache either full attention or linear states
in a `DynamicCache`: tested are qwen3_next, kimi_linear, qwen3_5, olmo_hybrid, lfm2, granitemoehybrid
and nemotron_h. Sliding windows, layers that hold both kinds (falcon_h1) and `UNMOVABLE` are refused.

Nothing is downloaded in a run: it would take minutes, and retries of a hub that is out of reach too.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from prfaas_lab.errors import LabError
from prfaas_lab.model.families import FAMILIES
from prfaas_lab.spec.scenario import Model

UNMOVABLE = {
    "bamba": "its chunked prefill is off by 5e-3 and more, so tokens could not be compared",
    "jamba": "its chunked prefill is off by 5e-3 and more, so tokens could not be compared",
    "minimax": "it has a cache class of its own, and chunks are off by 0.14",
    "recurrent_gemma": "it keeps its state inside the module, where it cannot be exported",
}
"""Families whose KVCache cannot be moved between engines, and why (measured, transformers 5.23)."""

_AUTO: Any = AutoModelForCausalLM  # its methods carry no types

SLOWEST_DECAY, FASTEST_DECAY = 0.002, 0.05
"""Per-token decay rates of the recurrent state: half-lives from 14 to 350 tokens."""

LATENT_QUERY_GAIN = 100.0
"""Of MLA without q/k norms. Measured on kimi-linear-tiny: a lost KV block changed the tokens in 13 of 24
tries at gain 1, in 16 at 30, and in 24 of 24 from 120 on."""


def build(spec: Model) -> PreTrainedModel:
    """The model of a scenario, in float32, for inference on one thread. Raises `LabError`.

    Call it once, in the main thread of the process that engines are forked from: a fork hangs when
    its parent ever ran torch on two threads.
    """
    one_thread()
    _hush()
    model = _load(spec.path) if spec.path is not None else _build(spec.name or "", spec.seed)
    model.train(False)
    model.requires_grad_(False)
    return model


def one_thread() -> None:
    """Keep torch to one thread. The setting is per thread: every thread that computes must call it."""
    torch.set_num_threads(1)


def _hush() -> None:
    """No progress bars, and no advice about GPU kernels, on the screen of a run."""
    quiet: Any = transformers_logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()


def _build(name: str, seed: int) -> PreTrainedModel:
    family = FAMILIES.get(name)
    if family is None:
        guess = difflib.get_close_matches(name, FAMILIES, n=1)
        meant = f"did you mean {guess[0]}? " if guess else ""
        raise LabError(
            f"no shipped model is called {name!r}",
            where="model.name",
            remedy=f"{meant}choose one of {', '.join(FAMILIES)}, or set model.path to a local folder",
        )
    config = AutoConfig.for_model(family.family, **family.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = _AUTO.from_config(config, dtype=torch.float32)
        lengthen_memory(model, seed)
    return model


@torch.no_grad()
def lengthen_memory(model: PreTrainedModel, seed: int) -> None:
    """Make random weights remember, so that a lost state or KV block changes the greedy tokens.

    The library's initial decay forgets a state within two tokens: token equality would then prove
    nothing. Here decay rates are log-uniform over a few hundred tokens, and attention is sharp: by the
    gain of the q/k norms (Qwen's norms store gain - 1), or, where latent attention has no such norm, by
    larger query weights. Scores then spread by about 4 either way, instead of 0.03 for the latent ones.
    """
    generator = torch.Generator().manual_seed(seed)
    sharpened = 1.0 if "Qwen" in type(model).__name__ else 2.0
    latent = "kv_a_proj_with_mqa"
    latent_attention = {n.removesuffix(latent) for n, _ in model.named_modules() if n.endswith(latent)}
    for name, weight in model.named_parameters():
        if name.endswith("A_log"):
            low, high = math.log(SLOWEST_DECAY), math.log(FASTEST_DECAY)
            weight.copy_(torch.rand(weight.shape, generator=generator) * (high - low) + low)
        elif name.endswith("dt_bias"):
            weight.fill_(0.5)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.fill_(sharpened)
        elif name.endswith("q_proj.weight") and name.removesuffix("q_proj.weight") in latent_attention:
            weight.mul_(LATENT_QUERY_GAIN)


def _load(path: str) -> PreTrainedModel:
    where = f"model.path {path}"
    folder = Path(path).expanduser()
    local = folder.is_dir()
    if not local and (folder.is_absolute() or path.startswith((".", "~"))):
        raise LabError("there is no such folder", where=where, remedy="give a folder that holds config.json")
    source = str(folder) if local else path
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
        _refuse_unmovable(config, where)
        model: PreTrainedModel = _AUTO.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise _not_loaded(error, path, where, local=local) from error
    return model


def _not_loaded(error: Exception, path: str, where: str, *, local: bool) -> LabError:
    reason = f"cannot load the model: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
    remedy = "the folder needs config.json and model.safetensors of a causal language model"
    if not local:
        remedy = f"download it first with `hf download {path}`, or set model.path to a local folder"
        if isinstance(error, OSError):  # transformers claims that it tried to connect; it was not allowed to
            reason = "this is neither a folder nor a model in the local hub cache"
    return LabError(reason, where=where, remedy=remedy)


def _refuse_unmovable(config: PretrainedConfig, where: str) -> None:
    reason = UNMOVABLE.get(config.model_type)
    if reason is not None:
        raise LabError(
            f"a {config.model_type} cannot be served disaggregated: {reason}",
            where=where,
            remedy="use qwen3_next, qwen3_5, kimi_linear, olmo_hybrid or another hybrid with a shared cache",
        )
