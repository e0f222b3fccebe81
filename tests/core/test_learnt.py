"""What is kept of what was learnt: all of it, through JSON, and nothing that cannot have been learnt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core import costs as costs_module
from falctl.core import demand as demand_module
from falctl.core import learnt
from falctl.core import speeds as speeds_module
from falctl.core.costs import Costs
from falctl.core.demand import Demand
from falctl.core.types import Hint

A, B = Hint("a"), Hint("b")


def experienced() -> tuple[Costs, Demand]:
    costs, demand = Costs(), Demand()
    for n in range(40):
        costs.executed(A, "card#0", 2.0)
        costs.executed(A, "card#1", 6.0)
        demand.arrived(A, "client", now=n * 3.0)
    costs.declare(A, 7 * 10**9)
    costs.loaded(A, "disk", 14.0)
    costs.loaded(A, "ram", 2.0)
    demand.arrived(B, "client", now=130.0)
    return costs, demand


def through_json(costs: Costs, demand: Demand) -> tuple[Costs, Demand]:
    return learnt.restore_app(json.loads(json.dumps(learnt.dump_app(costs, demand), allow_nan=False)))


def test_what_is_kept_answers_as_before() -> None:
    costs, demand = experienced()
    again, demand_again = through_json(costs, demand)
    for hint in (A, B):
        assert again.exec_s(hint, "card#1") == costs.exec_s(hint, "card#1")
        assert again.load_s(hint) == costs.load_s(hint)
        assert again.load_s(hint, "ram") == costs.load_s(hint, "ram")
        assert again.size_bytes(hint) == costs.size_bytes(hint)
    assert again.speed("card#1") == costs.speed("card#1") > 1.5
    assert again.speed("card#9") == costs.speed("card#9"), "a new card is taken for one of its model"
    assert (again.mean_exec, again.mean_load, again.mean_size) == (
        costs.mean_exec,
        costs.mean_load,
        costs.mean_size,
    )
    again.declare(B, 14 * 10**9)
    assert again.load_s(B) == pytest.approx(28.0), "the pace of the disk is known"
    assert demand_again.n == demand.n
    assert demand_again.gap_s == demand.gap_s


def test_demand_is_kept_without_the_clients() -> None:
    costs, demand = experienced()
    assert "client" not in json.dumps(learnt.dump_app(costs, demand))
    _, again = through_json(costs, demand)
    assert again.share(A) > 10 * again.share(B) > 0


def test_the_time_in_which_nobody_served_is_no_gap() -> None:
    _, demand = through_json(*experienced())
    gap_s = demand.gap_s
    demand.arrived(A, "", now=1e6)
    assert demand.gap_s == gap_s


def test_what_was_dumped_does_not_change_with_what_is_learnt_later() -> None:
    costs, demand = experienced()
    table = learnt.dump_app(costs, demand)
    before = json.dumps(table)
    costs.executed(A, "card#0", 50.0)
    demand.arrived(A, "", now=200.0)
    assert json.dumps(table) == before


observations = st.lists(
    st.tuples(
        st.sampled_from(["executed", "loaded", "declared", "arrived"]),
        st.text(min_size=1, max_size=3),
        st.sampled_from(["x#0", "x#1", "#2"]),
        st.floats(0, 1e6),
    ),
    max_size=60,
)


@given(observations)
def test_whatever_was_learnt_can_be_kept(told: list[tuple[str, str, str, float]]) -> None:
    costs, demand, now = Costs(), Demand(), 0.0
    for kind, name, card, seconds in told:
        hint = Hint(name)
        now += seconds
        match kind:
            case "executed":
                costs.executed(hint, card, seconds)
            case "loaded":
                costs.loaded(hint, "disk", seconds)
            case "declared":
                costs.declare(hint, int(seconds) + 1)
            case _:
                demand.arrived(hint, "", now=now)
    table = learnt.dump_app(costs, demand)
    assert learnt.dump_app(*through_json(costs, demand)) == table


def test_a_load_of_one_byte_can_be_kept() -> None:
    costs = Costs()
    costs.declare(A, 1)
    costs.loaded(A, "disk", 1e6)
    again, _ = through_json(costs, Demand())
    assert again.load_s(A) == 1e6


BAD: list[tuple[list[Any], Any]] = [
    (["costs"], []),
    (["demand"], None),
    (["costs", "exec"], {}),
    (["costs", "exec", 0], "row"),
    (["costs", "exec", 0], ["a", 1.0]),
    (["costs", "exec", 0, 0], 7),
    (["costs", "exec", 0, 0], "x" * 100_000),
    (["costs", "exec", 0, 1], float("nan")),
    (["costs", "exec", 0, 1], float("inf")),
    (["costs", "exec", 0, 1], -1.0),
    (["costs", "exec", 0, 1], 10**400),
    (["costs", "exec", 0, 1], True),
    (["costs", "exec", 0, 1], "2.0"),
    (["costs", "exec", 0, 2], 1.5),
    (["costs", "exec", 0, 2], -1),
    (["costs", "exec", 0, 2], True),
    (["costs", "load", 0, 2], float("-inf")),
    (["costs", "size", 0, 1], -5),
    (["costs", "s_per_byte", 0, 1], None),
    (["costs", "fleet", 0, 1], 0.0),
    (["costs", "speeds", "cards", 0, 1], 1e9),
    (["costs", "speeds", "cards", 0, 1], -1e9),
    (["costs", "speeds", "cards", 0, 2], -0.1),
    (["costs", "speeds", "usual", 0, 1], float("nan")),
    (["demand", "n"], "many"),
    (["demand", "gap_s"], float("nan")),
    (["demand", "counts", 0, 1], -1),
    (["demand", "counts", 0, 3], float("inf")),
]


@pytest.mark.parametrize(("path", "value"), BAD)
def test_what_cannot_have_been_learnt_is_refused_as_a_whole(path: list[Any], value: object) -> None:
    table = json.loads(json.dumps(learnt.dump_app(*experienced())))
    learnt.restore_app(table)
    place = table
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=r"\S") as caught:
        learnt.restore_app(table)
    assert len(str(caught.value)) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_garbage_is_refused_and_nothing_else_happens(garbage: object) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        learnt.restore_app(garbage)
    with pytest.raises(ValueError, match=r"\S"):
        learnt.restore_app({"costs": garbage, "demand": garbage})
    with pytest.raises(ValueError, match=r"\S"):
        learnt.restore(garbage, unnamed="")
    # A table of apps, empty or not, is none of garbage's; what stands in it is judged.
    with pytest.raises(ValueError, match=r"\S"):
        learnt.restore({"version": learnt.VERSION, "apps": {"x": garbage}}, unnamed="")


def test_no_more_is_taken_over_than_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    costs, demand = Costs(), Demand()
    for n in range(12):
        for _ in range(9):
            costs.executed(Hint(f"h{n}"), f"card#{n}", 1.0)
        costs.loaded(Hint(f"h{n}"), "disk", 1.0)
        costs.declare(Hint(f"h{n}"), 10)
        demand.arrived(Hint(f"h{n}"), "", now=float(n))
    table = learnt.dump_app(costs, demand)
    monkeypatch.setattr(costs_module, "HINTS_MAX", 3)
    monkeypatch.setattr(speeds_module, "HINTS_MAX", 3)
    monkeypatch.setattr(speeds_module, "CARDS_MAX", 3)
    monkeypatch.setattr(demand_module, "HINTS_MAX", 3)
    kept = learnt.dump_app(*learnt.restore_app(table))
    lists = [kept["costs"][name] for name in ("exec", "load", "size")]
    lists += [kept["costs"]["speeds"][name] for name in ("cards", "usual")]
    for rows in [*lists, kept["demand"]["counts"]]:
        assert [row[0][-2:] for row in rows] == ["h9", "10", "11"] or [row[0] for row in rows] == [
            "card#9",
            "card#10",
            "card#11",
        ]


def test_a_figure_that_is_not_known_yet_is_skipped() -> None:
    table = learnt.dump_app(*experienced())
    table["costs"]["fleet"].append(["of a later version", 1.0, 1])
    costs, _ = learnt.restore_app(table)
    assert costs.mean_exec.n == 80


def test_apps_are_kept_apart() -> None:
    table = json.loads(json.dumps(learnt.dump({"": experienced(), "other": (Costs(), Demand())})))
    found = learnt.restore(table, unnamed=None)
    assert list(found) == ["", "other"]
    assert learnt.dump_app(*found[""]) == learnt.dump_app(*experienced())
    assert not found["other"][1].n


def test_a_file_of_one_app_without_its_name_is_that_of_the_one_that_runs() -> None:
    table = {"version": 1, **learnt.dump_app(*experienced())}
    assert list(learnt.restore(table, unnamed="a")) == ["a"]
    with pytest.raises(ValueError, match="version 1 by an app without a name, not 2"):
        learnt.restore(table, unnamed=None)


@pytest.mark.parametrize("version", [3, "2", None, 1.5])
def test_another_version_is_not_read(version: object) -> None:
    with pytest.raises(ValueError, match=f"version {version!r}, not 2"):
        learnt.restore({"version": version, "apps": {}, "costs": {}, "demand": {}}, unnamed="")


@pytest.mark.parametrize("apps", [None, [], "x"])
def test_what_is_no_table_of_apps_is_refused(apps: object) -> None:
    with pytest.raises(ValueError, match="is not a table of apps"):
        learnt.restore({"version": learnt.VERSION, "apps": apps}, unnamed="")


def test_no_more_apps_are_kept_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learnt, "APPS_MAX", 2)
    apps = {name: (Costs(), Demand()) for name in ("c", "b", "a")}
    table = learnt.dump(apps)
    assert list(table["apps"]) == ["a", "b"]
    table["apps"]["c"] = "whatever"
    assert list(learnt.restore(table, unnamed=None)) == ["a", "b"]
