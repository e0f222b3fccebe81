"""All of a submitted request but its body, as it stands on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from falctl.core.retries import DEFAULT_RULES, Condition, RetryRules
from falctl.core.types import Hint, HintSource, Priority, Wanted
from falctl.router.dispatch.apps import UNNAMED
from falctl.router.edge.answers import RawHeaders


@dataclass(frozen=True, slots=True)
class Envelope:
    """A request to the app behind the queue."""

    app: str
    """``owner/alias``, as the client addressed it."""
    method: str
    path: bytes
    """What the app is asked for, as the client wrote it."""
    query: bytes
    headers: RawHeaders
    wanted: Wanted | None
    client: str
    priority: Priority = "normal"
    start_by: float | None = None
    """Wall clock: given up if it has not started by then; None: it waits as long as it takes."""
    rules: RetryRules = DEFAULT_RULES
    alias: str = UNNAMED
    """NAME in ``[apps.NAME]`` of the app that was meant; `UNNAMED`: falctl had one app without a name."""
    webhook: str | None = None
    """The URL that is to hear of its end; None: none."""
    brief: bool = False
    """Its client wants nothing kept beyond what delivery needs (X-Fal-Store-IO: 0)."""


def pack(envelope: Envelope) -> bytes:
    """Return *envelope* as JSON. Bytes are written as latin-1, so that every one of them comes back."""
    wanted, rules = envelope.wanted, envelope.rules
    table = {
        "app": envelope.app,
        "method": envelope.method,
        "path": envelope.path.decode("latin-1"),
        "query": envelope.query.decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in envelope.headers],
        "wanted": None if wanted is None else [wanted.hint, wanted.source, wanted.laid],
        "client": envelope.client,
        "priority": envelope.priority,
        "start_by": envelope.start_by,
        "never_retry": rules.never,
        "retries": dict(rules.asked),
        "alias": envelope.alias,
        "webhook": envelope.webhook,
        "brief": envelope.brief,
    }
    return json.dumps(table).encode()


def unpack(content: bytes) -> Envelope:
    """Return what `pack`, maybe one of an older version, made *content* of."""
    table = json.loads(content)
    wanted = table["wanted"]
    return Envelope(
        table["app"],
        table["method"],
        table["path"].encode("latin-1"),
        table["query"].encode("latin-1"),
        [(name.encode("latin-1"), value.encode("latin-1")) for name, value in table["headers"]],
        None if wanted is None else _wanted(*wanted),
        table["client"],
        table["priority"],
        table["start_by"],
        _rules(never=table["never_retry"], asked=table["retries"]),
        table.get("alias", UNNAMED),
        table.get("webhook"),
        table.get("brief", False),
    )


def _wanted(hint: str, source: HintSource, laid: Iterable[str] = ()) -> Wanted:
    return Wanted(Hint(hint), source, tuple(laid))


def _rules(*, never: bool, asked: dict[Condition, int]) -> RetryRules:
    """Return one object for all the many that say nothing."""
    return RetryRules(never=never, asked=asked) if never or asked else DEFAULT_RULES
