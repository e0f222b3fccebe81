"""
The picture of a fleet: a snapshot and a size in, lines of text out. Pure.

Four parts from top to bottom: what the whole does, notices, the cards with their runners, then the queue and the
last events. With a height to keep, space is given up in this order: blank lines, lines of models, queue and
events, and only then runners, which are counted when they do not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from falctl.core.sizes import size_text
from falctl.dashboard.cells import QUIET, Line, Pen, beside, fit, flow, ink, latency, rate, right, span
from falctl.dashboard.columns import columns_for
from falctl.dashboard.fleet import APP_CELLS_MAX, Block, block_lines, blocks_of, table_head
from falctl.dashboard.snapshot import EventFacts, FleetSnapshot, MemoryFacts, QueuedFacts, RouterFacts

WIDTH_MIN: Final = 40
TAIL_BESIDE_FROM: Final = 110
"""From this width on the queue and the events stand side by side."""

TAIL_LINES: Final = 10
"""Lines of queue, and of events, where no height limits them."""


class Density(NamedTuple):
    """How much air there is: blank lines between cards, and lines for the models of one runner."""

    air: bool
    model_lines: int


DENSITIES: Final = (
    Density(air=True, model_lines=6),
    Density(air=False, model_lines=2),
    Density(air=False, model_lines=1),
)


def render(
    snapshot: FleetSnapshot, *, width: int, height: int | None = None, ascii_only: bool = False
) -> RenderableType:
    """
    Return the view of *snapshot*, no line wider than *width* cells (at least `WIDTH_MIN` are used).

    With *height* it is at most that many lines and its last one says how to leave.
    """
    pen = Pen(ascii_only=ascii_only)
    inner = max(WIDTH_MIN, width) - 2
    top = [*_head(snapshot, inner, pen), *_notices(snapshot, inner, pen), Text()]
    foot = [_foot(inner, pen)] if height is not None else []
    room = None if height is None else max(1, height - len(top) - len(foot))
    fleet = _fleet(snapshot, inner + 2, pen, room=room)
    tail = _tail(snapshot, inner, pen, room=None if room is None else room - len(fleet))
    body = [*top, *fleet, *tail]
    if height is not None:
        body = body[: max(0, height - len(foot))]
        body += [Text()] * (height - len(foot) - len(body))
    return Group(*(_margin(line, max(WIDTH_MIN, width)) for line in [*body, *foot]))


def _margin(line: Line, width: int) -> Line:
    whole = Text(" ", no_wrap=True, overflow="crop", end="\n") + line
    if whole.cell_len > width:
        whole.truncate(width, overflow="crop")
    whole.rstrip()
    return whole


# --- top -----------------------------------------------------------------------------------------


def _head(snapshot: FleetSnapshot, cells: int, pen: Pen) -> list[Line]:
    gap = 4 if cells >= 100 else 3
    pieces = [*_metrics(snapshot.router), *_host_memory(snapshot.memory)]
    return [*_title(snapshot, cells, pen), *flow(pieces, cells, gap=gap)]


def _host_memory(memory: MemoryFacts | None) -> list[Line]:
    """Return what the runners share of host memory for weights, and may; nothing while that is nothing."""
    if memory is None or not memory.held_bytes:
        return []
    amount = f"{size_text(memory.held_bytes)} of {size_text(memory.budget_bytes)}"
    return [Text.assemble(("host memory ", QUIET), (amount, "bold"))]


def _title(snapshot: FleetSnapshot, cells: int, pen: Pen) -> list[Line]:
    fleet = snapshot.fleet
    if fleet is None:
        return [Text.assemble(("falctl", "bold"), "   ", ("is starting", "cyan"))]
    name = Text.assemble(("falctl", "bold"), (f" {pen.safe(fleet.version, cells=16)}", QUIET))
    up = Text.assemble(("up ", QUIET), span(fleet.uptime_s))
    url = ink(pen.safe(fleet.url, cells=cells), "cyan")
    policy = Text.assemble(("policy ", QUIET), pen.safe(fleet.policy, cells=24))
    app = Text.assemble(("app ", QUIET), pen.safe(fleet.app, cells=48))
    for aside in ([url, policy, app], [url, policy]):
        far = flow(aside, 10_000)[0]
        near = flow([name, up], 10_000)[0]
        if near.cell_len + 3 + far.cell_len <= cells:
            return [fit(near, cells - far.cell_len) + far]
    return flow([name, up, policy, url], cells)


def _metrics(router: RouterFacts | None) -> list[Line]:
    if router is None:
        return [ink("the router has not reported yet", "cyan")]
    if router.served == 0 and router.queued == 0 and not any(router.in_flight):
        return [ink("no request yet", QUIET)]
    served = router.served > 0
    hit_rate = "-" if router.hit_rate is None else f"{100 * router.hit_rate:.0f} %"
    pairs = [
        ("", rate(router.rate_rps), " req/s"),
        ("p50 ", latency(router.p50_s) if served else "-", ""),
        ("p95 ", latency(router.p95_s) if served else "-", ""),
        ("hit rate ", hit_rate, ""),
        ("queue ", f"{router.queued:,}", ""),
        ("in flight ", f"{sum(router.in_flight):,}", ""),
        ("served ", f"{router.served:,}", ""),
    ]
    if router.refused:
        pairs.append(("refused ", f"{router.refused:,}", ""))
    if router.webhooks_failing:
        pairs.append(("webhooks failing ", f"{router.webhooks_failing:,}", ""))
    value_style = QUIET if router.stale else "bold"
    return [
        Text.assemble((before, QUIET), (value, value_style), (after, QUIET)) for before, value, after in pairs
    ]


def _notices(snapshot: FleetSnapshot, cells: int, pen: Pen) -> list[Line]:
    """Return what a person must know before believing the rest."""
    said: list[tuple[str, str]] = []
    router = snapshot.router
    if router is not None and router.stale:
        silence = f"router has not answered for {span(router.beat_age_s)}"
        said.append((f"{silence}; runners below are read from shared memory", "bold yellow"))
    if router is not None and router.draining:
        said.append(("draining: no new request is taken", "yellow"))
    if snapshot.cards and all(card.stale for card in snapshot.cards):
        age = span(min(card.age_s for card in snapshot.cards))
        said.append((f"supervisor has not sampled the cards for {age}; their figures are old", "bold yellow"))
    if snapshot.runners and all(runner.state == "failed" for runner in snapshot.runners):
        said.append(("every runner has failed; see why below, then start falctl again", "bold red"))
    return [line for text, style in said for line in _words(text, style, cells)]


def _words(text: str, style: str, cells: int) -> list[Line]:
    return flow([ink(word, style) for word in text.split()], cells, gap=1)


# --- cards and runners ---------------------------------------------------------------------------


def _fleet(snapshot: FleetSnapshot, width: int, pen: Pen, *, room: int | None) -> list[Line]:
    blocks = blocks_of(snapshot)
    if not blocks:
        return [ink("no runner yet", QUIET)]
    columns = columns_for(snapshot.cards, width=width)
    head = table_head(columns)
    drawn: list[list[Line]] = []
    lines: list[Line] = []
    for density in DENSITIES:
        drawn = [block_lines(block, columns, pen, model_lines=density.model_lines) for block in blocks]
        lines = _stacked(head, drawn, air=density.air)
        if room is None or len(lines) <= room - min(room // 4, TAIL_LINES):
            return lines
    return lines if room is None or len(lines) <= room else _cropped(head, blocks, drawn, room=room)


def _stacked(head: Line, drawn: Sequence[list[Line]], *, air: bool) -> list[Line]:
    lines = [head]
    for n, block in enumerate(drawn):
        lines += [Text(), *block] if air and n > 0 else block
    return lines


def _cropped(head: Line, blocks: Sequence[Block], drawn: Sequence[list[Line]], *, room: int) -> list[Line]:
    """Return as many whole blocks as *room* lines take, and how many runners are missing."""
    lines = [head]
    for n, block in enumerate(drawn):
        if len(lines) + len(block) + 1 > room:
            hidden = sum(len(rest.runners) for rest in blocks[n:])
            return [*lines, ink(f"+{hidden} more runners; a taller terminal shows them", "yellow")]
        lines += block
    return lines


# --- queue and events ----------------------------------------------------------------------------


def _tail(snapshot: FleetSnapshot, cells: int, pen: Pen, *, room: int | None) -> list[Line]:
    """Return queue and events, led by a blank line; nothing when *room* is below two lines."""
    if room is not None and room < 2:
        return []
    lines_max = TAIL_LINES if room is None else room - 2
    queued = snapshot.router.queued if snapshot.router else 0
    if cells + 2 >= TAIL_BESIDE_FROM:
        half = (cells - 3) // 2
        queue = _queue(snapshot.queue, queued, half, pen, lines_max=lines_max)
        events = _events(snapshot.events, cells - half - 3, pen, lines_max=lines_max)
        return [Text(), *beside(queue, events, left_cells=half + 3)]
    if room is None:
        queue = _queue(snapshot.queue, queued, cells, pen, lines_max=lines_max)
        return [Text(), *queue, Text(), *_events(snapshot.events, cells, pen, lines_max=lines_max)]
    return [Text(), *_stacked_tail(snapshot, queued, cells, pen, room=room - 1)]


def _stacked_tail(snapshot: FleetSnapshot, queued: int, cells: int, pen: Pen, *, room: int) -> list[Line]:
    """Return queue and events below each other in *room* lines; where both do not fit, what waits comes first."""
    around = 3  # two headings and the blank line between the parts
    wanted = queued + len(_told(snapshot.queue))
    share = max(2, (room - around) // 2, room - around - len(snapshot.events))
    queue = _queue(snapshot.queue, queued, cells, pen, lines_max=min(wanted, share))
    if (left := room - len(queue) - 2) >= 1:
        return [*queue, Text(), *_events(snapshot.events, cells, pen, lines_max=left)]
    if queued:
        return _queue(snapshot.queue, queued, cells, pen, lines_max=room - 1)
    return _events(snapshot.events, cells, pen, lines_max=room - 1)


def _queue(queue: Sequence[QueuedFacts], queued: int, cells: int, pen: Pen, *, lines_max: int) -> list[Line]:
    queued = max(queued, len(queue))
    lines = [Text.assemble(("QUEUE", QUIET), "  ", f"{queued:,} waiting" if queued else ("empty", QUIET))]
    # Why the oldest wait is told below them: in lines to spare, or else in a quarter of them.
    spare = lines_max - queued if queued <= lines_max else lines_max // 4
    told = _told(queue)[: max(0, spare)]
    rows_max = lines_max - len(told)
    shown = list(queue[:rows_max])
    if len(shown) < queued and len(shown) == rows_max:
        shown = shown[:-1]
    for n, request in enumerate(shown):
        lines.append(_queued(request, cells, pen))
        if n in told:
            lines.append(ink(" " * 10 + pen.safe(request.why, cells=max(1, cells - 10)), "yellow"))
    if (hidden := queued - len(shown)) and lines_max > 0:
        lines.append(ink(f"{' ' * 10}+{hidden:,} more", QUIET))
    return lines


def _told(queue: Sequence[QueuedFacts]) -> list[int]:
    """Return where the first request of each model stands for which it is told why it waits."""
    first: dict[str | None, int] = {}
    for n, request in enumerate(queue):
        if request.why:
            first.setdefault(request.hint, n)
    return list(first.values())


def _queued(request: QueuedFacts, cells: int, pen: Pen) -> Line:
    age = right(ink(span(request.age_s)), 8)
    id_cells, client_cells = (12, 16) if cells >= 56 else (8, 0)
    hint_cells = max(4, cells - age.cell_len - id_cells - client_cells - 4)
    app = ink(pen.safe(request.app, cells=APP_CELLS_MAX) + " ", "cyan") if request.app else ink("")
    name_cells = max(1, hint_cells - app.cell_len)
    wanted = ink(pen.safe(request.hint, cells=name_cells)) if request.hint else ink("any runner", QUIET)
    hint = app + wanted
    line = age + ink("  ") + fit(hint, hint_cells)
    line = line + ink("  ") + fit(ink(pen.safe(request.request, cells=id_cells), QUIET), id_cells)
    client = pen.safe(request.client, cells=max(0, client_cells - 1))
    return line + ink(f" {client}", QUIET) if client_cells else line


def _events(events: Sequence[EventFacts], cells: int, pen: Pen, *, lines_max: int) -> list[Line]:
    lines = [Text.assemble(("EVENTS", QUIET), *([] if events else [("  none yet", QUIET)]))]
    for event in reversed(events[-lines_max:] if lines_max > 0 else []):
        age = right(ink(span(event.age_s), QUIET), 8)
        lines.append(age + ink("  " + pen.safe(event.text, cells=max(1, cells - 10))))
    return lines


def _foot(cells: int, pen: Pen) -> Line:
    glyphs = pen.glyphs
    legend = ink(f"{glyphs.ready} ready   {glyphs.in_ram} in RAM   {glyphs.loading} loading", QUIET)
    leave = ink("q or Ctrl-C to leave", QUIET)
    if legend.cell_len + leave.cell_len + 3 > cells:
        return leave
    return fit(legend, cells - leave.cell_len) + leave
