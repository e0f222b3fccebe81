"""A host tells of steps and, to who asks, shows pictures of them; a cancelled request ends between two steps."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from falctl.board.board import Board
from falctl.core.types import RequestId
from falctl.host import previews
from falctl.host.previews import PREVIEW_BYTES_MAX
from falctl.host.report import STEPS_LAG_BYTES_MAX
from falctl.host.ticket import Slots, Ticket
from falctl.toolkit.latents import PREVIEW_SIDE_MAX
from falctl.wire import Released, Stepped
from runners.demo import demo_model_path
from tests.host.harness import STEP_S, Events, Host, executing, idle
from tests.host.test_events import Peer, settle
from tests.host.test_keeper import HEAD, keeper_on
from tests.wait import until

pytestmark = pytest.mark.process

PREVIEWS = {"x-falctl-preview": "1"}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host("tests.host.stepping_app:Stepping") as host:
        yield host


@pytest.fixture
def work(host: Host, tmp_path: Path) -> Iterator[dict[str, Any]]:
    yield {"folder": str(tmp_path)}
    (tmp_path / "open").touch()
    idle(host)


def named(request: str, **more: str) -> dict[str, str]:
    return {"x-fal-request-id": request, **more}


def shown(events: Events) -> Image.Image:
    """Return the next picture."""
    while not (message := events.until(Stepped)).preview:
        pass
    data = base64.b64decode(message.preview)
    assert len(data) <= PREVIEW_BYTES_MAX
    return Image.open(io.BytesIO(data))


def until_released(events: Events) -> list[Stepped]:
    steps = []
    while not isinstance(message := events.next(), Released):
        if isinstance(message, Stepped):
            steps.append(message)
    return steps


def test_steps_are_told_in_order_and_the_last_one_always(host: Host, work: dict[str, Any]) -> None:
    with host.events() as events:
        later = host.later("/", work, named("steps"))
        first = events.until(Stepped)
        assert (first.request, first.steps) == ("steps", 1_000_000)
        (Path(work["folder"]) / "open").touch()
        told = [first, *until_released(events)]
        assert [m.step for m in told] == sorted({m.step for m in told})
        assert told[-1].step == 1_000_000
        assert not any(m.preview for m in told)
        assert later.reply().json == {"made": 0}, "nobody asked for pictures"


def test_a_step_is_on_the_board_when_it_is_told(host: Host, work: dict[str, Any]) -> None:
    with host.events() as events:
        host.later("/", work, named("board"))
        told = events.until(Stepped)
        (executing,) = host.row.executing
        assert executing.step >= told.step
        assert host.row.progress_known, "so that silence is a stall"


def test_pictures_are_made_for_who_asks_with_the_request(host: Host, work: dict[str, Any]) -> None:
    with host.events() as events:
        host.later("/", work | {"side": 1000}, named("asked", **PREVIEWS))
        picture = shown(events)
        assert (picture.format, picture.size) == ("JPEG", (PREVIEW_SIDE_MAX, PREVIEW_SIDE_MAX // 2))


def test_pictures_are_made_from_when_somebody_asks(host: Host, work: dict[str, Any]) -> None:
    with host.events() as events:
        host.later("/", work, named("later"))
        events.until(Stepped)
        assert host.post("/falctl/preview/later").status == 202
        assert shown(events).size == (64, 32)
    assert host.post("/falctl/preview/nobody").status == 404


def test_pictures_are_not_made_at_every_step(host: Host, work: dict[str, Any]) -> None:
    with host.events() as events:
        later = host.later("/", work, named("rate", **PREVIEWS))
        until(lambda: host.row.executing and host.row.executing[0].step > 50, within_s=STEP_S, what="steps")
        shown(events)
        (Path(work["folder"]) / "open").touch()
        steps = until_released(events)[-2].step
        assert later.reply().json["made"] < steps / 5


def test_the_worst_picture_is_of_bounded_size(host: Host, work: dict[str, Any]) -> None:
    with host.events() as events:
        host.later("/", work | {"picture": "noise", "side": PREVIEW_SIDE_MAX}, named("noise", **PREVIEWS))
        assert shown(events).size == (PREVIEW_SIDE_MAX, PREVIEW_SIDE_MAX)


def test_of_what_makes_no_picture_only_the_steps_are_told(host: Host, work: dict[str, Any]) -> None:
    with host.events() as events:
        host.later("/", work | {"picture": "none"}, named("none", **PREVIEWS))
        assert [events.until(Stepped).preview for _ in range(3)] == [""] * 3


def test_a_picture_that_fails_does_not_fail_the_request(host: Host, work: dict[str, Any]) -> None:
    later = host.later("/", work | {"picture": "broken"}, named("broken", **PREVIEWS))
    until(lambda: "preview.failed request=broken" in host.output(), within_s=STEP_S, what="it failed")
    # Each step takes 2 ms at least, so that the next picture would be due.
    until(lambda: host.row.executing[0].step > 500, within_s=STEP_S, what="it goes on")
    (Path(work["folder"]) / "open").touch()
    assert later.reply().json == {"made": 1}, "and it is not tried again"


def test_an_app_that_reports_no_steps_can_ask_whether_it_is_cancelled(
    host: Host, work: dict[str, Any]
) -> None:
    later = host.later("/asks", work, named("asks"))
    until(lambda: host.row.executing[0].steps if host.row.executing else 0, within_s=STEP_S, what="it runs")
    assert not host.row.progress_known, "the first step may take as long as it likes"
    assert not later.done
    assert host.post("/falctl/cancel/asks").status == 202
    assert later.reply().json == "ended"


def test_a_reader_that_takes_nothing_is_sent_no_steps_beyond_a_bound(tmp_path: Path) -> None:
    """They are on the board, so that it need not hear of them."""
    board = Board.create(tmp_path / "board", runners=1, gpus=1)

    async def scene() -> int:
        keeper = keeper_on(board, Slots(1))
        deaf = Peer()
        stream = asyncio.ensure_future(keeper.report.events.serve([], deaf.receive, deaf.send))
        await settle()
        deaf.writable.clear()
        ticket = keeper.admit(HEAD)
        assert ticket is not None
        for step in range(100):
            ticket.step, ticket.steps = step, 100
            keeper.report.step_done(ticket, bytes(30_000))
            await settle()
        row = board.runner(0)
        assert row is not None
        assert row.executing[0].step == 99
        lag_bytes = keeper.report.events.lag_bytes
        deaf.writable.set()
        await keeper.end(ticket)
        keeper.report.step_done(ticket, b"late")
        await settle()
        assert isinstance(deaf.lines[-1], Released), "of what is over no step is told"
        stream.cancel()
        return lag_bytes

    lag_bytes = asyncio.run(scene())
    assert STEPS_LAG_BYTES_MAX < lag_bytes < STEPS_LAG_BYTES_MAX + 50_000
    board.close()


def test_who_waits_for_the_load_of_another_is_cancelled_at_once(tmp_path: Path) -> None:
    with Host("tests.host.stepping_app:Loading") as host:
        loads = host.later("/", {"model": str(tmp_path)}, named("loads"))
        executing(host, "loads")
        joins = host.later("/", {"model": str(tmp_path)}, named("joins"))
        executing(host, "joins")
        assert host.post("/falctl/cancel/joins").status == 202
        assert joins.reply().status == 499
        assert not loads.done
        (tmp_path / "open").touch()
        assert loads.reply().json == str(tmp_path)


def test_a_picture_that_is_too_large_all_the_same_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "PREVIEW_BYTES_MAX", 100)

    async def scene() -> None:
        task = asyncio.current_task()
        assert task is not None
        ticket = Ticket(RequestId("r"), None, warm=True, task=task, previews=True)
        assert previews.make_preview(ticket, lambda: Image.new("L", (64, 64))) is None
        assert ticket.previews, "the next may be smaller"

    asyncio.run(scene())


@pytest.fixture(scope="module")
def artist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    from tests.host.cache.tiny_pipelines import write

    folder = tmp_path_factory.mktemp("models")
    for name in ("ddpm", "flux"):
        write(folder, name)
    shutil.copytree(demo_model_path("digits-classic"), folder / "demo")
    with Host("runners.diffusion:AnyModelRunner", config={"models": {"paths": [str(folder)]}}) as host:
        yield host


def asked(model: str, **more: Any) -> dict[str, Any]:
    small = {"width": 64, "height": 64}
    return {"model": model, "prompt": "a cat", "seed": 7, "num_inference_steps": 500, **small, **more}


@pytest.mark.parametrize("model", ["demo", "ddpm", "flux"])
def test_a_drawing_shows_itself_and_is_cancelled_between_two_steps(artist: Host, model: str) -> None:
    with artist.events() as events:
        running = artist.later("/", asked(model), named(model, **PREVIEWS))
        assert max(shown(events).size) <= PREVIEW_SIDE_MAX
        assert artist.post(f"/falctl/cancel/{model}").status == 202
        steps = until_released(events)
        assert all(message.step < message.steps == 500 for message in steps)
    assert running.reply().status == 499
    again = artist.post("/", asked(model, num_inference_steps=2, sync_mode=True))
    assert (again.status, again.timings["cache"]) == (200, "hit")
