"""Several slots over one device: what has no room beside a drawing waits for its end, and nobody waits for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from falctl.core.activations import Drawing
from falctl.core.residency import Room
from falctl.errors import ModelTooLargeError
from falctl.toolkit import ModelCache, RequestCancelled
from falctl.toolkit.cache_hooks import Admitted, CacheHooks, CachePolicy
from falctl.toolkit.moving import moving
from tests.toolkit.counted_store import CountedStore, Model, OutOfMemoryError
from tests.wait import until

WAIT_S = 60.0
SIZES = {
    "a": {"a.unet": 40},
    "b": {"b.unet": 30},
    "c": {"c.unet": 10, "shared": 5},
    "d": {"d.unet": 10, "shared": 5},
}


class Slots:
    """Requests that one after the other do something, each on a thread of its own, over a device of 100 bytes."""

    def __init__(self, pool: ExitStack, **policy: Any) -> None:
        self.store = CountedStore(SIZES, 100)
        self.here = threading.local()
        self.stops: dict[str, threading.Event] = {}
        hooks = CacheHooks(
            holder=lambda: getattr(self.here, "request", None),
            cancelled=lambda: self.stops.setdefault(getattr(self.here, "request", ""), threading.Event()),
        )
        self.cache: ModelCache[Model] = ModelCache(self.store, policy=CachePolicy(**policy), hooks=hooks)
        self.threads: dict[str, ThreadPoolExecutor] = {}
        self.leases: dict[str, list[Any]] = {}
        self.pool = pool

    def begin(self, request: str, name: str, drawing: int = 0) -> Future[Model]:
        """Have *request* lease *name* to draw *drawing* bytes."""

        def lease() -> Model:
            self.here.request = request
            held = self.cache.lease(name, Drawing(drawing, 1))
            model = held.__enter__()
            self.leases.setdefault(request, []).append(held)
            return model

        return self.on(request, lease)

    def on(self, request: str, call: Callable[[], Any]) -> Future[Any]:
        """Have the thread of *request* do *call*, after all that it was told before."""
        if request not in self.threads:
            self.threads[request] = self.pool.enter_context(ThreadPoolExecutor(1))
        return self.threads[request].submit(call)

    def end(self, request: str) -> None:
        """End *request*, which does not wait."""

        def let_go() -> None:
            self.here.request = request
            for held in reversed(self.leases.pop(request, [])):
                held.__exit__(None, None, None)

        self.on(request, let_go).result(WAIT_S)

    def waits(self, *asking: Future[Any]) -> None:
        """Return once all of *asking* stand in the line, which none of them has left."""
        line = self.cache._loader._turns._line
        until(lambda: len(line) == len(asking), within_s=WAIT_S, what=f"{len(asking)} wait")
        assert not any(one.done() for one in asking)


@contextmanager
def slots(**policy: Any) -> Iterator[Slots]:
    with ExitStack() as pool:
        made = Slots(pool, **policy)
        try:
            yield made
        finally:
            for stop in made.stops.values():
                stop.set()


def test_a_drawing_that_has_no_room_beside_another_waits_for_its_end() -> None:
    with slots() as s:
        assert s.begin("one", "a", 30).result(WAIT_S).ready
        assert s.begin("two", "b", 0).result(WAIT_S).ready, "it fits beside it"
        s.end("two")
        second = s.begin("two", "b", 1)
        s.waits(second)
        assert s.cache.residents()[0].leases + s.cache.residents()[1].leases == 1, "it holds nothing"
        s.end("one")
        assert second.result(WAIT_S).ready
        s.end("two")


def test_so_does_a_second_drawing_with_the_same_model() -> None:
    with slots() as s:
        s.begin("one", "a", 30).result(WAIT_S)
        second = s.begin("two", "a", 31)
        s.waits(second)
        assert s.begin("three", "a", 30).done() is False
        s.end("one")
        second.result(WAIT_S)
        s.end("two")
        s.end("three")


def test_what_drawings_have_taken_already_is_not_kept_free_once_more() -> None:
    with slots() as s:
        s.begin("one", "a", 30).result(WAIT_S)
        s.store.drawn_bytes = 30
        assert s.begin("two", "b", 0).result(WAIT_S).ready
        s.end("two")
        s.waits(s.begin("two", "b", 1))
        s.store.drawn_bytes = 0
        s.end("one")
        s.end("two")


def test_what_can_never_fit_is_told_at_once_whoever_draws() -> None:
    with slots() as s:
        s.begin("one", "a", 30).result(WAIT_S)
        with pytest.raises(ModelTooLargeError, match="'b' has no room: it needs 101 bytes") as caught:
            s.begin("two", "b", 71).result(WAIT_S)
        assert "others have it" not in caught.value.detail
        s.end("one")


def test_those_who_wait_go_in_the_order_in_which_they_asked() -> None:
    with slots() as s:
        s.begin("one", "a", 30).result(WAIT_S)
        large = s.begin("two", "b", 60)
        s.waits(large)
        small = s.begin("three", "c", 0)
        s.waits(large, small)
        s.end("one")
        large.result(WAIT_S)
        s.waits(small)
        s.end("two")
        assert small.result(WAIT_S).ready
        s.end("three")


def test_a_request_that_is_cancelled_while_it_waits_leaves_the_line() -> None:
    with slots() as s:
        s.begin("one", "a", 30).result(WAIT_S)
        large = s.begin("two", "b", 60)
        s.waits(large)
        small = s.begin("three", "c", 0)
        s.waits(large, small)
        s.stops["two"].set()
        with pytest.raises(RequestCancelled):
            large.result(WAIT_S)
        assert small.result(WAIT_S).ready
        s.end("one")
        s.end("three")


def test_of_two_who_hold_what_the_other_waits_for_the_later_one_is_told_and_the_other_goes_on() -> None:
    with slots() as s:
        s.begin("one", "a", 0).result(WAIT_S)
        s.begin("two", "b", 0).result(WAIT_S)
        first = s.begin("one", "c", 30)  # 45 of the 30 that are free
        s.waits(first)
        with pytest.raises(
            ModelTooLargeError, match="others have it who wait for what this request has"
        ) as caught:
            s.begin("two", "d", 30).result(WAIT_S)
        assert caught.value.least_bytes is None, "the router is not to learn that it is too large"
        s.waits(first)
        s.end("two")
        assert first.result(WAIT_S).ready
        s.end("one")


def test_who_holds_a_lease_goes_before_those_who_wait_for_it() -> None:
    with slots() as s:
        s.begin("one", "a", 0).result(WAIT_S)
        large = s.begin("two", "b", 60)
        s.waits(large)
        assert s.begin("one", "c", 0).result(WAIT_S).ready
        s.end("one")
        large.result(WAIT_S)
        s.end("two")


def test_nobody_waits_for_a_lease_of_the_apps_own() -> None:
    with slots() as s:
        kept = s.cache.lease("a", Drawing(30, 1))
        kept.__enter__()
        assert s.begin("one", "b", 30).result(WAIT_S).ready
        with pytest.raises(ModelTooLargeError):
            s.begin("one", "c", 60).result(WAIT_S)
        s.end("one")
        kept.__exit__(None, None, None)


def test_nobody_waits_for_room_with_the_lock_that_others_may_need() -> None:
    with slots() as s:
        s.begin("one", "a", 30).result(WAIT_S)

        def inside() -> None:
            s.here.request = "two"
            with moving(), s.cache.lease("b", Drawing(60, 1)):
                pass

        with pytest.raises(ModelTooLargeError):
            s.on("two", inside).result(WAIT_S)
        s.end("one")


class Ways:
    """Admits whole what fits, else staged; a drawing of 13 bytes is staged always."""

    def __init__(self) -> None:
        self.store: CountedStore | None = None
        self.arranged: list[tuple[str, str]] = []

    def admit(self, name: str, drawing: Drawing | None, room: Room) -> Admitted:
        assert drawing is not None
        need = sum(SIZES[name].values()) + drawing.width
        if need <= room.most_bytes and drawing.width != 13:
            return Admitted("whole", need)
        return Admitted("staged", drawing.width + max(SIZES[name].values()))

    def arrange(self, name: str, drawing: Drawing | None, admitted: Admitted) -> None:
        if self.arranged[-1:] != [(name, admitted.how)]:  # said before it is made, and before it is placed
            self.arranged.append((name, admitted.how))


def ways() -> tuple[Ways, dict[str, Any]]:
    made = Ways()
    return made, {"admit": made.admit, "arrange": made.arrange}


def test_a_model_runs_as_it_would_alone_and_waits_for_the_room_rather_than_run_otherwise() -> None:
    made, policy = ways()
    with slots(**policy) as s:
        s.begin("one", "a", 30).result(WAIT_S)
        second = s.begin("two", "b", 40)
        s.waits(second)
        assert made.arranged == [("a", "whole")], "nothing is changed for one who waits"
        s.end("one")
        second.result(WAIT_S)
        s.end("two")
        assert made.arranged == [("a", "whole"), ("b", "whole")]


@pytest.mark.parametrize("second", ["c", "d"])
def test_a_staged_model_is_drawn_with_by_one_at_a_time_and_what_shares_its_parts_waits(second: str) -> None:
    _made, policy = ways()
    with slots(**policy) as s:
        s.begin("one", "c", 13).result(WAIT_S)
        assert s.begin("two", "b", 0).result(WAIT_S).ready, "it shares nothing"
        drawing = s.begin("three", second, 0 if second == "d" else 13)
        s.waits(drawing)
        s.end("one")
        drawing.result(WAIT_S)
        again = s.begin("one", "c", 13)
        s.waits(again)
        s.stops["one"].set()
        with pytest.raises(RequestCancelled):
            again.result(WAIT_S)
        s.end("two")
        s.end("three")


def test_a_model_is_not_placed_anew_under_somebody_who_draws_with_it() -> None:
    _made, policy = ways()
    with slots(**policy) as s:
        s.begin("one", "c", 0).result(WAIT_S)
        other = s.begin("two", "c", 13)
        s.waits(other)
        assert dict(s.store.hows) == {"c": "whole"}
        s.end("one")
        other.result(WAIT_S)
        assert dict(s.store.hows) == {"c": "staged"}
        s.end("two")


def test_what_ran_out_of_memory_is_tried_again_when_nobody_draws_beside_it() -> None:
    with slots() as s:
        s.begin("one", "a", 0).result(WAIT_S)
        tries: list[int] = []

        def draw(model: Model) -> str:
            tries.append(sum(r.leases for r in s.cache.residents()))
            if len(tries) == 1:
                raise OutOfMemoryError("somebody took more than he said")
            return model.draw(1)

        def run() -> str:
            s.here.request = "two"
            return s.cache.run("b", draw)

        running = s.on("two", run)
        s.waits(running)
        late = s.begin("three", "c")
        s.waits(running, late)
        s.end("one")
        assert running.result(WAIT_S) == "B"
        assert tries == [2, 1]
        late.result(WAIT_S)
        s.end("three")


def test_a_load_that_ran_out_of_memory_beside_a_drawing_is_tried_again_after_it() -> None:
    with slots() as s:
        s.begin("one", "a", 0).result(WAIT_S)
        s.store.lies, s.store.taken_bytes = True, 40
        loading = s.begin("two", "b", 0)
        s.waits(loading)
        assert s.store.used_bytes == 40
        s.store.taken_bytes = 0
        s.end("one")
        assert loading.result(WAIT_S).ready
        s.end("two")


class Growing(CountedStore):
    """Knows what a model needs only when it has been made, as of one that is still on the Hub."""

    def needs(self, name: str) -> Any:
        return super().needs(name) if name in self._made else ()


def test_a_model_that_turns_out_larger_than_was_known_waits_for_its_room_and_is_made_once() -> None:
    with slots() as s:
        s.store.__class__ = Growing
        s.begin("one", "a", 30).result(WAIT_S)
        loading = s.begin("two", "b", 20)
        s.waits(loading)
        assert s.store.moves["construct b"] == 1
        s.end("one")
        assert loading.result(WAIT_S).ready
        assert s.store.moves["construct b"] == 1
        s.end("two")


def test_whether_a_drawing_was_alone_is_known_at_its_end() -> None:
    alone: list[bool] = []

    @contextmanager
    def around(name: str, drawing: Drawing | None, was_alone: Callable[[], bool]) -> Iterator[None]:
        yield
        alone.append(was_alone())

    with slots(around=around) as s:

        def run(then: Callable[[], None]) -> Future[Any]:
            def here() -> None:
                s.here.request = "one"
                s.cache.run("a", lambda _model: then())

            return s.on("one", here)

        run(lambda: None).result(WAIT_S)

        def beside() -> None:
            s.begin("two", "b").result(WAIT_S)
            s.end("two")

        run(beside).result(WAIT_S)
        s.begin("two", "b").result(WAIT_S)
        run(lambda: None).result(WAIT_S)
        run(lambda: s.end("two")).result(WAIT_S)
        run(lambda: None).result(WAIT_S)
    assert alone == [True, False, False, False, True]
