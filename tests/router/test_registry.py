"""Policies by name, and a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas_lab.errors import UsageError
from prfaas_lab.router import policy, route_of
from prfaas_lab.spec.scenario import Policy


@pytest.mark.parametrize("text", ["def route(:", "1 / 0", "raise SystemError('no')", "import there_is_not"])
def test_a_module_that_cannot_be_imported_is_told_as_its_writers(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_policy.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="cannot load policy 'broken_policy:route'"):
        policy("broken_policy:route")


def test_a_policy_that_reckons_with_profiles_is_refused_without() -> None:
    asked = Policy(name="earliest-finish")
    assert route_of(asked) is policy("earliest-finish")
    with pytest.raises(UsageError, match="no hardware profiles"):
        route_of(asked, has_costs=False)
