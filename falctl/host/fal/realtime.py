"""
The functions of `@fal.realtime`, on the runner's own threads.

The SDK makes a websocket endpoint of such a function, and runs sync ones on the loop's default executor: as many at a
time as it likes, and not on the thread where `setup` has put the model. It takes async ones as they are, so it gets
async ones.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from falctl.clock import monotonic_s
from falctl.host.app_threads import AppThreads
from falctl.host.card_errors import breaks_the_card
from falctl.host.fal.sdk import SDK
from falctl.host.ticket import CURRENT
from falctl.toolkit.out_of_memory import runs_out_of_memory


def realtime_route(method: Callable[..., Any], signature: Any, *, threads: AppThreads) -> Callable[..., Any]:
    """Return what the SDK is to serve for a websocket endpoint of its; raw ones as they are: they are async."""
    function = getattr(method, "original_func", None)
    if function is None:
        return method
    template = _template()(_on_threads(function, threads), signature)
    bound: Callable[..., Any] = types.MethodType(template, method.__self__)  # type: ignore[attr-defined]
    return bound


def _template() -> Callable[..., Any]:
    module = sys.modules[sys.modules[f"{SDK}.app"].realtime.__module__]
    if not hasattr(module, "_fal_websocket_template"):
        msg = "this version of fal's SDK serves @fal.realtime in a way that falctl does not know"
        raise TypeError(msg)
    template: Callable[..., Any] = module._fal_websocket_template  # noqa: SLF001 - the same from 1.60 on
    return template


def _on_threads(function: Callable[..., Any], threads: AppThreads) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(function):
        return function
    if inspect.iscoroutinefunction(function):
        return _noting(function)
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        async def stream(*given: Any) -> AsyncIterator[Any]:
            async for item in _steps(function(*given), threads):
                yield item

        return stream

    @functools.wraps(function)
    async def call(*given: Any) -> Any:
        with _at_work():
            result = await threads.run(function, *given)
        return _steps(result, threads) if isinstance(result, Iterator) else result

    return call


def _noting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*given: Any) -> Any:
        with _at_work():
            return await function(*given)

    return call


async def _steps(items: Iterator[Any], threads: AppThreads) -> AsyncIterator[Any]:
    with _at_work():
        async for item in threads.iterate(items):
            yield item


@contextmanager
def _at_work() -> Iterator[None]:
    """Time this as a request is timed, and note what the SDK tells the client alone: that the card is of no use."""
    ticket = CURRENT.get()
    assert ticket is not None, "a websocket without a ticket"
    ticket.busy_since = monotonic_s()
    try:
        yield
    except Exception as error:
        ticket.broke_card |= breaks_the_card(error)
        ticket.ends_runner |= runs_out_of_memory(error)
        raise
    finally:
        ticket.busy_since = None
