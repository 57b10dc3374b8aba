"""The shipped models, built once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.fixture(scope="session", params=["qwen3-next-tiny", "kimi-linear-tiny"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    from prfaas_lab.model.torch_build import build
    from prfaas_lab.spec.scenario import Model

    return build(Model(name=request.param))
