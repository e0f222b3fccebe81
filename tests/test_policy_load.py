"""Policies by name, and the names that the configuration accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from falctl.config import RoutingConfig
from falctl.config_diff import LIVE
from falctl.config_values import POLICY_NAMES
from falctl.core.policies import POLICIES, Affinity, Auto
from falctl.policy_load import Tuning, find_policy
from tests.configs import load, refusal


def test_the_configuration_knows_every_shipped_policy_and_its_defaults() -> None:
    assert POLICY_NAMES == POLICIES
    shipped, routing = Tuning(), RoutingConfig()
    assert (shipped.hold_s, shipped.bypass_max_s, shipped.locality) == (
        routing.hold,
        routing.bypass_max,
        routing.locality,
    )


def test_the_keys_reach_their_policies() -> None:
    auto = find_policy("auto", cwd=Path(), tuning=Tuning(locality=2.5))
    assert isinstance(auto, Auto)
    assert auto.knobs.locality == 2.5
    affinity = find_policy("affinity", cwd=Path(), tuning=Tuning(hold_s=1.0, bypass_max_s=2.0))
    assert affinity == Affinity(hold_s=1.0, bypass_max_s=2.0)


@pytest.mark.parametrize("name", [*POLICIES, "mine:Policy", "a.b_c.d2:_E"])
def test_a_shipped_name_and_module_class_are_policies(name: str, tmp_path: Path) -> None:
    assert load(f'[routing]\npolicy = "{name}"\n', folder=tmp_path).routing.policy == name
    assert load(environ={"FALCTL_ROUTING_POLICY": name}).routing.policy == name


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("atuo", 'did you mean "auto"?'),
        ("FAL", 'did you mean "fal"?'),
        ("zzz", 'no policy; write "auto", "affinity"'),
        ("zzz", '"module:Class"'),
        ("mine:", '"module:Class"'),
        (":Class", '"module:Class"'),
        ("mine.py::Class", '"module:Class"'),
        ("a b:C", '"module:Class"'),
        ("..:C", '"module:Class"'),
    ],
)
def test_what_cannot_be_a_policy_is_refused_with_the_fix(name: str, fix: str, tmp_path: Path) -> None:
    line = refusal(f'[routing]\npolicy = "{name}"\n', folder=tmp_path)
    assert line.startswith(f'routing.policy = "{name}" (falctl.toml): ')
    assert fix in line


def test_locality_has_bounds_and_changes_in_a_running_falctl(tmp_path: Path) -> None:
    assert load("[routing]\nlocality = 3\n", folder=tmp_path).routing.locality == 3.0
    for wrong in ("0", "0.09", "10.5", "nan", "true", '"much"'):
        line = refusal(f"[routing]\nlocality = {wrong}\n", folder=tmp_path)
        assert line.startswith("routing.locality = ")
        assert "a number from 0.1 to 10.0" in line
    assert "routing.locality" in LIVE
