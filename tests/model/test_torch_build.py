"""Models are built from their seed alone, and what cannot be served is refused with the remedy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from prfaas_lab.errors import LabError
from prfaas_lab.model.families import FAMILIES, VOCABULARY
from prfaas_lab.model.torch_build import build
from prfaas_lab.model.torch_cache import layout_of
from prfaas_lab.model.torch_reference import generate
from prfaas_lab.spec.scenario import Model

pytestmark = pytest.mark.model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shipped_model_is_as_large_as_its_purpose_says(name: str) -> None:
    model = build(Model(name=name))
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert millions == pytest.approx(5.8 if "small" in name else 1.0, rel=0.25)
    assert model.config.vocab_size == VOCABULARY
    kinds = [layer.kind for layer in layout_of(model, 128).layers]
    assert kinds == ["linear", "linear", "linear", "full"] * (len(kinds) // 4)


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    one = build(Model(seed=7))
    torch.manual_seed(2)
    same, other = build(Model(seed=7)), build(Model(seed=8))
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_building_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build(Model())
    assert torch.equal(torch.rand(4), expected)


def test_the_weights_remember_for_hundreds_of_tokens(model: PreTrainedModel) -> None:
    rates = torch.cat([w.exp().flatten() for n, w in model.named_parameters() if n.endswith("A_log")])
    assert rates.min() >= 0.002
    assert rates.max() <= 0.05 * (1 + 1e-6)
    assert rates.log().std() > 0.1 * math.log(25), "rates are all alike"


def test_a_saved_folder_answers_like_the_model_it_was_saved_from(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = build(Model(name=None, path=str(tmp_path)))
    prompt = range(100)
    assert generate(loaded, prompt, 8, 64) == generate(model, prompt, 8, 64)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(LabError, match=r"did you mean qwen3-next-tiny\?"):
        build(Model(name="qwen3-next-tny"))


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "~/none"])
def test_a_missing_folder_is_told_apart_from_a_hub_id(path: str) -> None:
    with pytest.raises(LabError, match="there is no such folder") as caught:
        build(Model(name=None, path=path))
    assert path in str(caught.value)


def test_a_hub_id_is_never_fetched_in_a_run() -> None:
    with pytest.raises(LabError, match="hf download nobody/nothing"):
        build(Model(name=None, path="nobody/nothing"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"config\.json"):
        build(Model(name=None, path=str(tmp_path)))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("qwen3_next", **FAMILIES["qwen3-next-tiny"].config).save_pretrained(tmp_path)
    with pytest.raises(LabError, match="cannot load the model"):
        build(Model(name=None, path=str(tmp_path)))


@pytest.mark.parametrize("family", ["bamba", "jamba", "minimax", "recurrent_gemma"])
def test_a_family_whose_cache_cannot_move_is_refused(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(LabError, match=f"a {family} cannot be served disaggregated"):
        build(Model(name=None, path=str(tmp_path)))


def test_a_sliding_window_is_refused_until_its_cache_can_move() -> None:
    config = AutoConfig.for_model(
        "gemma3_text",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=16,
        pad_token_id=0,
    )
    with pytest.raises(LabError, match="DynamicSlidingWindowLayer"):
        layout_of(AutoModelForCausalLM.from_config(config), 64)
