"""The shipped models, built once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build(name: str) -> PreTrainedModel:
    from prfaas_lab.model.torch_build import build
    from prfaas_lab.spec.scenario import Model

    return build(Model(name=name))


@pytest.fixture(scope="session", params=["qwen3-next-tiny", "kimi-linear-tiny"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture(scope="session")
def qwen() -> PreTrainedModel:
    return build("qwen3-next-tiny")
