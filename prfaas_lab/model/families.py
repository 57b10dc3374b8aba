"""The models that ship with the lab: seeded weights, so nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

VOCABULARY = 384
"""Token ids of ByT5: 256 bytes, 3 specials, 125 sentinels. Its tokenizer needs no files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model the lab can build from a seed: `family` is transformers' `model_type`."""

    name: str
    family: str
    purpose: str
    config: Mapping[str, Any] = field(repr=False)


def _qwen3_next(*, layers: int, hidden: int, intermediate: int, linear_heads: int) -> Mapping[str, Any]:
    """Dense Qwen3-Next: three gated delta nets, then one full attention with two KV heads."""
    return MappingProxyType(
        {
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": hidden // 4,
            "linear_num_key_heads": linear_heads // 2,
            "linear_num_value_heads": linear_heads,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_conv_kernel_dim": 4,
            "num_experts": 0,
            "mlp_only_layers": list(range(layers)),
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
        }
    )


def _kimi_linear(*, layers: int, hidden: int) -> Mapping[str, Any]:
    """Dense Kimi Linear: three Kimi delta attentions, then one latent attention (MLA)."""
    return MappingProxyType(
        {
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "kv_lora_rank": hidden // 2,
            "q_lora_rank": None,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "linear_num_heads": 4,
            "linear_head_dim": 32,
            "linear_conv_kernel_dim": 4,
            "layer_types": ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers)],
            "mlp_layer_types": ["dense"] * layers,
            "max_position_embeddings": 131072,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
    )


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family(
                name="qwen3-next-tiny",
                family="qwen3_next",
                purpose="4 layers, 1 M parameters, GDN:full 3:1; the default, quick enough for CI",
                config=_qwen3_next(layers=4, hidden=128, intermediate=384, linear_heads=4),
            ),
            Family(
                name="qwen3-next-small",
                family="qwen3_next",
                purpose="8 layers, 5.8 M parameters, GDN:full 3:1; more bytes and more work per token",
                config=_qwen3_next(layers=8, hidden=256, intermediate=576, linear_heads=8),
            ),
            Family(
                name="kimi-linear-tiny",
                family="kimi_linear",
                purpose="4 layers, KDA:MLA 3:1, the architecture of the paper; compressed KVCache",
                config=_kimi_linear(layers=4, hidden=128),
            ),
        )
    }
)
