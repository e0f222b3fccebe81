"""fal's rules of when an attempt is followed by another."""

from __future__ import annotations

import pytest

from falctl.core.retries import (
    ATTEMPTS_MAX,
    CONDITIONS,
    SILENT,
    AppRetries,
    Condition,
    Outcome,
    RetryRules,
    Tried,
    pause_s,
    retries,
)

PLAIN = RetryRules()


def tried_again(
    outcome: Outcome, rules: RetryRules = PLAIN, app: AppRetries = SILENT, *, attempts: int = 1
) -> bool:
    return retries(outcome, Tried(attempts, {}), rules, app)


@pytest.mark.parametrize("status", [503, 504])
def test_an_answer_that_says_the_server_is_broken_is_retried(status: int) -> None:
    assert tried_again(Outcome(status))


@pytest.mark.parametrize("status", [200, 302, 400, 422, 429, 499, 500, 502])
def test_any_other_answer_is_final(status: int) -> None:
    assert not tried_again(Outcome(status))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_an_attempt_without_an_answer_is_retried(condition: Condition) -> None:
    assert tried_again(Outcome(502, condition=condition))


def test_ten_attempts_are_the_most_whatever_anybody_says() -> None:
    eager = RetryRules(asked={"server_error": 99})
    assert tried_again(Outcome(503), eager, attempts=ATTEMPTS_MAX - 1)
    assert not tried_again(Outcome(503), eager, attempts=ATTEMPTS_MAX)
    assert not tried_again(Outcome(503, needs_retry=True), attempts=ATTEMPTS_MAX)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_answer_itself_decides_before_all_others(status: int) -> None:
    skips = AppRetries(skips=frozenset(CONDITIONS))
    assert tried_again(Outcome(status, needs_retry=True), RetryRules(asked={"server_error": 0}), skips)
    assert not tried_again(Outcome(status, needs_retry=False))


@pytest.mark.parametrize("status", [200, 301, 404, 422])
def test_the_answer_has_no_say_where_nothing_is_retried(status: int) -> None:
    assert not tried_again(Outcome(status, needs_retry=True))


def test_a_request_that_wants_no_retry_gets_none() -> None:
    never = RetryRules(never=True, asked={"timeout": 5})
    assert not tried_again(Outcome(504, condition="timeout"), never)
    assert not tried_again(Outcome(503, needs_retry=True), never)


def test_the_request_is_asked_before_the_app_and_the_app_before_the_default() -> None:
    rules, app = RetryRules(asked={"timeout": 2}), AppRetries({"timeout": 0, "server_error": 1})
    assert rules.budget("timeout", app) == 2
    assert rules.budget("server_error", app) == 1
    assert rules.budget("connection_error", app) == ATTEMPTS_MAX - 1
    assert RetryRules(never=True).budget("server_error", app) == 0


def test_what_an_app_skips_is_not_tried_again_unless_the_request_asks_for_it() -> None:
    app = AppRetries({"timeout": 3}, frozenset({"timeout", "connection_error"}))
    assert not tried_again(Outcome(504, condition="timeout"), app=app)
    assert not tried_again(Outcome(503, condition="connection_error"), app=app)
    assert tried_again(Outcome(503), app=app)
    assert tried_again(Outcome(504, condition="timeout"), RetryRules(asked={"timeout": 1}), app)


def test_each_condition_has_its_own_budget() -> None:
    rules = RetryRules(asked={"server_error": 1, "timeout": 1})
    assert retries(Outcome(503), Tried(2, {"timeout": 1}), rules)
    assert not retries(Outcome(503), Tried(2, {"server_error": 1}), rules)


def test_pauses_double_up_to_a_bound() -> None:
    assert [pause_s(n) for n in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert pause_s(ATTEMPTS_MAX) == 30.0
