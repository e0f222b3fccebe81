"""
What a person wants of a model here, by `POST /falctl/models`: load it into host memory, unload it, pin it, unpin it.

Done on the app's thread, where it waits for what executes and nothing leaves under a request's hands; only bytes may be
read beside it. A load onto the card is a load job of the router's (`falctl.host.loads`), which knows who else waits.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, assert_never, get_args

from falctl.core.residency import Tier
from falctl.errors import ConflictError
from falctl.host.app_threads import AppThreads
from falctl.host.failures import expected
from falctl.host.prints.aside import aside
from falctl.host.report import Report
from falctl.toolkit import BadRequestError, ModelCache, NotFoundError

Deed: TypeAlias = Literal["load", "unload", "pin", "unpin"]
_LEAVES: Final[dict[str, Tier]] = {"ram": "vram", "disk": "ram"}
"""Where a model is to be after it was unloaded, and what it leaves for that, with all above."""
_SYNTAX: Final = (
    'an order is {"do": "unload|pin|unpin", "model": name, "tier": "ram|disk"}, or "load" with "ram"'
)


_LOADS_ITSELF: Final = (
    "this app loads its models itself: it has no model cache of ours with a load=, or more than one"
)
_KEEPS_THEM: Final = "this app keeps its models itself: it has no model cache of ours, or more than one"


@dataclass(frozen=True, slots=True)
class ModelOrder:
    """``do`` of ``model``; ``tier`` is where an unload ends, in host memory or with nothing but its files."""

    do: Deed
    model: str
    tier: Literal["ram", "disk"] = "disk"


def read_model_order(body: bytes) -> ModelOrder:
    """Return the order in *body*. Raises BadRequestError: it is none."""
    try:
        table = json.loads(body)
        deed, model, tier = table["do"], str(table["model"]), table.get("tier", "disk")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequestError(_SYNTAX) from error
    if deed not in get_args(Deed) or tier not in _LEAVES or (deed == "load" and tier != "ram"):
        raise BadRequestError(_SYNTAX)
    return ModelOrder(deed, model, tier)


class ModelOrders:
    """Obeys. Owned by the event loop."""

    def __init__(self, report: Report, threads: AppThreads) -> None:
        self._report = report
        self._threads = threads

    async def obey(self, order: ModelOrder) -> dict[str, Any]:
        """
        Return what became of the model, when it has: the tier that it is in (None: none), and whether that is new.

        Raises:
            RequestError: it cannot be, and why: there is no such model, it is pinned, or in use.
        """
        cache = self._report.cache if order.do == "load" else self._report.only_cache
        if cache is None:
            msg = _LOADS_ITSELF if order.do == "load" else _KEEPS_THEM
            raise BadRequestError(msg)
        beside = order.do == "load" and cache.may_overlap(order.model, tier="ram")
        run = asyncio.to_thread if beside else self._threads.run
        try:
            changed = await run(_perform, cache, order)
        except Exception as error:  # noqa: BLE001 - the app's code; `expected` logs it
            raise expected(error) from None
        return {"tier": cache.tier(order.model), "changed": changed}


def _perform(cache: ModelCache[Any], order: ModelOrder) -> bool:
    with aside():
        match order.do:
            case "load":
                return cache.load(order.model, "ram") > 0
            case "unload":
                return _unload(cache, order.model, leaves=_LEAVES[order.tier])
            case "pin":
                known = order.model in cache.pinned
                cache.pin(order.model)
                return not known
            case "unpin":
                return cache.unpin(order.model)
            case _:
                assert_never(order.do)


def _unload(cache: ModelCache[Any], model: str, *, leaves: Tier) -> bool:
    if cache.evict(model, leaves):
        return True
    seen = next((resident for resident in cache.residents() if resident.name == model), None)
    if seen is None:
        msg = f"{model} is not here"
        raise NotFoundError(msg)
    if seen.pinned:
        msg = f"{model} is pinned; `falctl unpin` lets it leave"
        raise ConflictError(msg)
    if seen.leases:
        msg = f"{model} is in use; try again when its requests have ended, or cancel them (`falctl jobs`)"
        raise ConflictError(msg)
    return False
