"""Which runner gets which card, of one app and of several."""

from __future__ import annotations

from typing import Any

import pytest

from falctl.config import Config
from falctl.core.cards import Card
from falctl.errors import ConfigError
from falctl.supervisor.nvml import Machine
from falctl.supervisor.plan import Plan, make_plan, runner_environ, wants_cards

FOUR = Machine("595.0", tuple(Card(i, f"GPU-{i}", "Card", 1 << 30) for i in range(4)))


def plan(
    apps: dict[str, dict[str, Any]],
    *,
    machine: Machine | None = FOUR,
    visible: str | None = None,
    **runners: Any,
) -> Plan:
    tables = {alias: {"app": f"{alias}:App", **table} for alias, table in apps.items()}
    config = Config.model_validate({"apps": tables, "runners": runners})
    return make_plan(config, machine, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})


def cards(found: Plan) -> dict[str, list[list[int]]]:
    return {alias: [[c.index for c in p.cards] for p in runners] for alias, runners in found.apps.items()}


def test_cpu_runners_share_memory_and_those_with_cards_take_no_part() -> None:
    assert plan({}, app="a:B", machine=None, cpu_count=3).cpu_share(100) == 33
    assert plan({}, app="a:B").cpu_share(100) == 0


def test_one_app_is_planned_as_ever() -> None:
    found = plan({}, app="a:B", count=5)
    assert cards(found) == {"": [[0], [1], [2], [3], [0]]}
    assert [p.name for p in found.runners] == ["gpu0.0", "gpu1.1", "gpu2.2", "gpu3.3", "gpu0.4"]
    assert {p.app for p in found.runners} == {"a:B"}
    assert found.told() == []


def test_every_app_gets_the_cards_that_it_names() -> None:
    found = plan({"draw": {"gpus": [3, [0, 1]]}, "speak": {"gpus": ["GPU-2"], "count": 2}})
    assert cards(found) == {"draw": [[3], [0, 1]], "speak": [[2], [2]]}
    assert [p.runner for p in found.runners] == [0, 1, 2, 3]
    assert [p.name for p in found.runners] == ["draw:gpu3.0", "draw:gpu0+1.1", "speak:gpu2.2", "speak:gpu2.3"]
    assert found.told() == [
        "draw: 2 runners of draw:App on GPU 3, 0+1",
        "speak: 2 runners of speak:App on GPU 2, 2",
    ]
    rows = {p.name: [card.index for row in p.gpu_rows if (card := found.gpus[row])] for p in found.runners}
    assert rows == {"draw:gpu3.0": [3], "draw:gpu0+1.1": [0, 1], "speak:gpu2.2": [2], "speak:gpu2.3": [2]}
    assert len(found.gpus) == 4


def test_who_names_none_shares_those_that_nobody_names() -> None:
    assert cards(plan({"a": {}, "b": {}, "c": {}})) == {"a": [[0], [1]], "b": [[2]], "c": [[3]]}
    assert cards(plan({"a": {}, "b": {"gpus": [1]}, "c": {"count": 4}})) == {
        "a": [[0], [2]], "b": [[1]], "c": [[3], [3], [3], [3]]
    }  # fmt: skip


def test_the_choice_for_all_bounds_what_is_shared() -> None:
    assert cards(plan({"a": {}, "b": {}}, gpus=[3, 1])) == {"a": [[3]], "b": [[1]]}
    assert cards(plan({"a": {}, "b": {}}, visible="2,0")) == {"a": [[2]], "b": [[0]]}
    assert cards(plan({"a": {}, "b": {"gpus": [1]}}, gpus=[[0, 1], [2, 3]])) == {"a": [[2, 3]], "b": [[1]]}


def test_two_apps_share_a_card_if_both_name_it() -> None:
    found = plan({"a": {"gpus": [0]}, "b": {"gpus": [0, 1]}})
    assert cards(found) == {"a": [[0]], "b": [[0], [1]]}
    assert len(found.gpus) == 2


@pytest.mark.parametrize(
    ("apps", "runners", "line"),
    [
        (
            {"a": {"gpus": [0, 1, 2, 3]}, "b": {}},
            {},
            'apps.b.gpus = "all": of GPU 0, 1, 2, 3 none is left, as it gets what others do not name; '
            'name cards in both tables to share one, or write "none" for CPU runners',
        ),
        (
            {"a": {}, "b": {}},
            {"gpus": [2]},
            'apps.b.gpus = "all": of GPU 2 none is left, as it shares what others do not name with a; '
            'name cards in both tables to share one, or write "none" for CPU runners',
        ),
        (
            {"a": {"gpus": [7]}},
            {},
            "apps.a.gpus: no GPU 7; visible here: 0 (GPU-0), 1 (GPU-1), 2 (GPU-2), 3 (GPU-3)",
        ),
    ],
)
def test_an_app_without_a_card_is_refused(apps: Any, runners: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(apps, **runners)
    assert str(caught.value) == line


def test_a_named_card_on_a_machine_without_any_is_refused_with_what_to_write() -> None:
    with pytest.raises(ConfigError) as caught:
        plan({"a": {"gpus": [0]}}, machine=None)
    assert str(caught.value) == 'apps.a.gpus: no GPU 0; visible here: none; gpus = "none" starts CPU runners'


def test_without_cards_every_app_runs_on_the_cpu() -> None:
    for found in (
        plan({"a": {}, "b": {"cpu_count": 1}, "c": {"count": 3}}, machine=None, cpu_count=2),
        plan({"a": {}, "b": {"cpu_count": 1}, "c": {"count": 3}}, gpus="none", cpu_count=2),
    ):
        assert cards(found) == {"a": [[], []], "b": [[]], "c": [[], [], []]}
        assert found.on_cpu
        assert [p.gpu_rows for p in found.runners] == [(n,) for n in range(6)]
        assert [p.name for p in found.runners][:3] == ["a:cpu0", "a:cpu1", "b:cpu2"]
        assert found.driver == ""


def test_one_app_may_run_on_the_cpu_beside_others_on_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan({"a": {"gpus": "none", "cpu_count": 2}, "b": {}})
    assert cards(found) == {"a": [[], []], "b": [[0], [1], [2], [3]]}
    assert [p.gpu_rows for p in found.runners] == [(0,), (1,), (2,), (3,), (4,), (5,)]
    assert [card and card.index for card in found.gpus] == [None, None, 0, 1, 2, 3]
    assert found.told() == ["a: 2 runners of a:App on the CPU", "b: 4 runners of b:App on GPU 0, 1, 2, 3"]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    environs = [runner_environ(p, found, Config(), {}) for p in found.runners[1:3]]
    assert [e["OMP_NUM_THREADS"] for e in environs] == ["4", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environs] == ["", "GPU-0"]


@pytest.mark.parametrize(
    ("apps", "gpus", "wanted"),
    [
        ({}, "all", True),
        ({}, "none", False),
        ({"a": "none", "b": "none"}, "all", False),
        ({"a": "none", "b": "all"}, "all", True),
        ({"a": "none", "b": "all"}, "none", False),
        ({"a": [0]}, "none", True),
    ],
)
def test_the_driver_is_asked_only_if_somebody_wants_a_card(
    apps: dict[str, Any], gpus: str, wanted: bool
) -> None:
    tables = {alias: {"app": "a:B", "gpus": choice} for alias, choice in apps.items()}
    assert wants_cards(Config.model_validate({"apps": tables, "runners": {"gpus": gpus}})) is wanted
