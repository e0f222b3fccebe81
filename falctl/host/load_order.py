"""What the router asks for when it wants a model loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass

from falctl.toolkit import BadRequestError


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What `POST /falctl/load` asks for."""

    hint: str
    evict: tuple[str, ...]


def read_order(body: bytes) -> LoadOrder:
    """Return the order in *body*. Raises BadRequestError: it is none."""
    try:
        table = json.loads(body)
        return LoadOrder(str(table["hint"]), tuple(map(str, table.get("evict", ()))))
    except (ValueError, KeyError, TypeError) as error:
        msg = 'a load order is {"hint": name, "evict": [names]}'
        raise BadRequestError(msg) from error
