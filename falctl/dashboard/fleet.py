"""The middle of the view: every card with the runners that live on it, as lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from falctl.core.sizes import gib_text, size_text
from falctl.dashboard.cells import (
    QUIET,
    Line,
    Pen,
    beside,
    fit,
    flow,
    ink,
    level,
    right,
    span,
    wrap,
)
from falctl.dashboard.columns import AMOUNT_CELLS, CONDENSED_UTIL_CELLS, GAP, Columns
from falctl.dashboard.snapshot import CardFacts, ExecutingFacts, FleetSnapshot, ModelFacts, RunnerFacts

STATE_STYLES = {
    "ready": "green",
    "starting": "cyan",
    "draining": "yellow",
    "backoff": "bold yellow",
    "failed": "bold red",
    "stopped": QUIET,
}
UTIL_LEVELS = {"low": 10.0, "high": 75.0}
MEMORY_LEVELS = {"low": 10.0, "high": 80.0}
EXECUTING_SHOWN_MAX = 3
NAME_CELLS_MAX = 44
APP_CELLS_MAX = 12
TEMP_CELLS = 6
POWER_CELLS = 11


@dataclass(frozen=True, slots=True)
class Block:
    """Cards that share a runner, and all runners on them: what is never torn apart on the screen."""

    cards: tuple[CardFacts, ...]
    runners: tuple[RunnerFacts, ...]


def blocks_of(snapshot: FleetSnapshot) -> list[Block]:
    """Return cards and runners grouped: each card once, a runner below the cards it is pinned to."""
    groups: list[set[int]] = [{card.card} for card in snapshot.cards]
    for runner in snapshot.runners:
        touched = [group for group in groups if group & set(runner.cards)]
        for group in touched[1:]:
            touched[0] |= group
            groups.remove(group)
    blocks = [
        Block(
            tuple(card for card in snapshot.cards if card.card in group),
            tuple(runner for runner in snapshot.runners if group & set(runner.cards)),
        )
        for group in groups
    ]
    known = {card.card for card in snapshot.cards}
    return blocks + [Block((), (runner,)) for runner in snapshot.runners if known.isdisjoint(runner.cards)]


def table_head(columns: Columns) -> Line:
    """Return the names of the columns."""
    style = QUIET
    index = fit(ink("GPU" if columns.has_gpu else "CPU", style), columns.index)
    restarts = right(ink("RESTARTS" if columns.wide else "", style), columns.left - columns.index - 4)
    left = index + ink("NAME", style) + restarts
    memory = ink("VRAM" if columns.has_gpu else "MEMORY", style)
    if not columns.wide:
        return left + fit(right(ink("UTIL", style), CONDENSED_UTIL_CELLS - 2), CONDENSED_UTIL_CELLS) + memory
    gap = ink(" " * GAP)
    sensors = right(ink("TEMP", style), TEMP_CELLS) + right(ink("POWER", style), POWER_CELLS)
    sensors = sensors if columns.sensors else Text()
    mid = fit(ink("UTILISATION", style), columns.mid - sensors.cell_len) + sensors
    return left + gap + mid + gap + memory


def block_lines(block: Block, columns: Columns, pen: Pen, *, model_lines: int) -> list[Line]:
    """Return the lines of one block; each runner's models take at most *model_lines* lines."""
    lines = [_card_line(card, columns, pen) for card in block.cards]
    if block.cards and not block.runners:
        lines.append(_indented(ink("no runner", QUIET), columns))
    indexes = {card.card: card.gpu_index for card in block.cards}
    for runner in block.runners:
        on = ",".join(str(indexes.get(card, "?")) for card in runner.cards) if len(block.cards) > 1 else ""
        lines += _runner_lines(runner, columns, pen, on=on, model_lines=model_lines)
    return lines


# --- a card --------------------------------------------------------------------------------------


def _card_line(card: CardFacts, columns: Columns, pen: Pen) -> Line:
    index = ink(str(card.gpu_index) if card.kind == "cuda" or not columns.has_gpu else "", "bold")
    name = ink(_card_name(card, columns.left - columns.index - 1, pen), "bold")
    left = fit(index, columns.index) + fit(name, columns.left - columns.index)
    if not columns.wide:
        return left + _condensed_util(card) + _memory(card, columns, pen)
    gap = ink(" " * GAP)
    return left + gap + fit(_load(card, columns, pen), columns.mid) + gap + _memory(card, columns, pen)


def _card_name(card: CardFacts, cells: int, pen: Pen) -> str:
    if card.kind == "cpu":
        return pen.safe("CPU", cells=cells)
    name = pen.safe(card.name or "unknown card", cells=200)
    for filler in ("NVIDIA ", "GeForce ", " Generation"):
        if len(name) > cells:
            name = name.replace(filler, "", 1)
    return pen.cut(name, cells=cells)


def _trouble(card: CardFacts) -> Line | None:
    """Return what is said in place of a card's figures, or None when they are good."""
    if card.state == "lost":
        return ink("LOST", "bold red")
    if card.stale:
        return ink(f"{span(card.age_s)} old", "yellow")
    return None


def _condensed_util(card: CardFacts) -> Line:
    trouble = _trouble(card)
    if trouble is None:
        trouble = ink("-") if card.util_pct is None else ink(f"{card.util_pct} %", _util_style(card.util_pct))
    elif trouble.cell_len > CONDENSED_UTIL_CELLS - 2:
        trouble = ink("old", "yellow")
    return fit(right(trouble, CONDENSED_UTIL_CELLS - 2), CONDENSED_UTIL_CELLS)


def _util_style(util_pct: int) -> str:
    return level(util_pct, **UTIL_LEVELS)


def _load(card: CardFacts, columns: Columns, pen: Pen) -> Line:
    """Return utilisation as a bar and a number, then temperature and power where the machine has sensors."""
    sensors = _sensors(card, pen) if columns.sensors else Text()
    number = 7
    bar_cells = columns.mid - sensors.cell_len - number
    trouble = _trouble(card)
    if trouble is not None:
        return fit(trouble, bar_cells + number) + sensors
    if card.util_pct is None:
        return fit(ink("-", QUIET), bar_cells + number) + sensors
    style = _util_style(card.util_pct)
    bar = pen.bar(card.util_pct / 100, cells=bar_cells, style=style)
    return bar + fit(right(ink(f"{card.util_pct} %", style), number - 1), number) + sensors


def _sensors(card: CardFacts, pen: Pen) -> Line:
    temp = "-" if card.temp_c is None else f"{card.temp_c} {pen.glyphs.degree.strip()}C"
    power = "-" if card.power_w is None else f"{card.power_w:.0f}"
    if card.power_limit_w:
        power = f"{power}/{card.power_limit_w:.0f}"
    style = QUIET if card.stale or card.state != "ok" else ""
    return right(ink(temp, style), TEMP_CELLS) + right(ink(f"{power} W", style), POWER_CELLS)


def _memory(card: CardFacts, columns: Columns, pen: Pen) -> Line:
    if card.state == "lost" or card.total_bytes <= 0:
        return ink("the card does not answer" if card.state == "lost" else "-", QUIET)
    share = card.used_bytes / card.total_bytes
    style = QUIET if card.stale else level(100 * share, **MEMORY_LEVELS)
    amount = ink(
        f"{gib_text(card.used_bytes)} / {gib_text(card.total_bytes)} GiB", QUIET if card.stale else ""
    )
    if columns.memory_bar == 0:
        return right(amount, min(columns.right, max(AMOUNT_CELLS, amount.cell_len)))
    return pen.bar(share, cells=columns.memory_bar, style=style) + ink(" ") + right(amount, AMOUNT_CELLS)


# --- a runner ------------------------------------------------------------------------------------


def _runner_lines(
    runner: RunnerFacts, columns: Columns, pen: Pen, *, on: str, model_lines: int
) -> list[Line]:
    who, restarts = _who(runner, pen, on=on), _restarts(runner, columns)
    if columns.wide:
        who = fit(who, columns.left - columns.index - 1 - restarts.cell_len) + ink(" ") + restarts
        now = _now_lines(runner, columns.mid, pen)
        holds = _holds(runner, columns.right, pen, lines_max=model_lines)
        body = beside(now, holds, left_cells=columns.mid + GAP)
        lines = beside([_indented(who, columns)], body, left_cells=columns.left + GAP)
    else:
        inner = columns.width - columns.index
        who = flow([who, restarts], inner, gap=2)[0] if runner.restarts else who
        now = _now_lines(runner, max(20, inner - who.cell_len - 3), pen)
        holds = _holds(runner, inner - 2, pen, lines_max=model_lines)
        first = flow([who, *now[:1]], inner)
        lines = [_indented(line, columns) for line in first]
        lines += [_indented(ink("  ") + line, columns) for line in [*now[1:], *holds]]
    return lines + _reason_lines(runner, columns, pen)


def _indented(line: Line, columns: Columns) -> Line:
    return ink(" " * columns.index) + line


def _who(runner: RunnerFacts, pen: Pen, *, on: str) -> Line:
    name = f"runner {runner.runner}" + (f" on {on}" if on else "")
    app = f" {pen.safe(runner.app, cells=APP_CELLS_MAX)}" if runner.app else ""
    return Text.assemble(
        name,
        (app, "cyan"),
        "  ",
        (pen.safe(runner.state, cells=10), STATE_STYLES.get(runner.state, "yellow")),
    )


def _restarts(runner: RunnerFacts, columns: Columns) -> Line:
    count = str(runner.restarts) if columns.wide else f"restarts {runner.restarts}"
    return ink(count, "yellow" if runner.restarts else QUIET)


def _now_lines(runner: RunnerFacts, cells: int, pen: Pen) -> list[Line]:
    """Return what the runner does, one line for each thing."""
    if runner.state == "starting":
        stage = pen.safe(runner.reason or "starting", cells=max(1, cells - 9))
        return [Text.assemble((stage, "cyan"), (f"  {span(runner.since_s)}", QUIET))]
    if runner.state == "backoff":
        return [ink(f"restarts in {span(runner.restart_in_s or 0.0)}", "yellow")]
    if runner.state in {"failed", "stopped"}:
        return [ink(f"for {span(runner.since_s)}", QUIET)]
    lines = [_executing(job, cells, pen) for job in runner.executing[:EXECUTING_SHOWN_MAX]]
    if hidden := len(runner.executing) - len(lines):
        lines.append(ink(f"+{hidden} more", QUIET))
    if runner.stale:
        lines.insert(0, _silence(runner))
    return lines or [_idle(runner)]


def _silence(runner: RunnerFacts) -> Line:
    if runner.beat_age_s is None:
        return ink("has not reported yet", "yellow")
    return ink(f"silent for {span(runner.beat_age_s)}", "yellow")


def _idle(runner: RunnerFacts) -> Line:
    served = f"idle, {runner.served:,} served" if runner.served else "idle, no request yet"
    return ink(served, QUIET)


def _executing(job: ExecutingFacts, cells: int, pen: Pen) -> Line:
    """Return ``▸ name ━━━── step 14/28 3.2 s``: the name gives way first, the bar is there when there is room."""
    elapsed = span(job.elapsed_s)
    step = f"step {job.step}/{job.steps}" if job.steps > 0 else "running"
    name_cells = cells - 6 - len(step) - len(elapsed)
    if name_cells < 8 and job.steps > 0:
        step = f"{job.step}/{job.steps}"
        name_cells = cells - 6 - len(step) - len(elapsed)
    name = ink(pen.safe(job.hint or f"request {job.request}", cells=max(4, min(name_cells, NAME_CELLS_MAX))))
    line = Text.assemble((f"{pen.glyphs.runs} ", "bold cyan"), name)
    room = cells - line.cell_len - 6 - len(step) - len(elapsed)
    if job.steps > 0 and room >= 6:
        line = line + ink("  ") + pen.bar(job.step / job.steps, cells=min(room, 20), style="cyan")
    return line + Text.assemble("  ", (step, "cyan"), "  ", (elapsed, QUIET))


def _holds(runner: RunnerFacts, cells: int, pen: Pen, *, lines_max: int) -> list[Line]:
    """Return what a runner holds in at most *lines_max* lines: with sizes if there is room, else what fits."""
    pieces = _models(runner, cells, pen, sizes=True)
    if len(flow(pieces, cells)) > lines_max:
        pieces = _models(runner, cells, pen, sizes=False)
    return _limited(pieces, cells, lines_max)


def _models(runner: RunnerFacts, cells: int, pen: Pen, *, sizes: bool) -> list[Line]:
    """Return the models of a runner, then the hints that are no model of its cache; each with its state in words."""
    if runner.state not in {"ready", "draining", "unknown"}:
        return []
    known = sorted(runner.models, key=_rank)
    pieces = [_model(model, pen, cells=cells, sizes=sizes) for model in known if _rank(model) <= _RAM]
    names = {model.name for model in runner.models}
    pieces += [_warm(hint, pen, cells=cells) for hint in runner.hints or () if hint not in names]
    if runner.hints_dropped > 0:
        pieces.append(ink(f"+{runner.hints_dropped} hints", QUIET))
    if not pieces:
        pieces = [ink("no model yet" if runner.hints is not None else "gives no hints", QUIET)]
    return pieces


_RAM = 1


def _rank(model: ModelFacts) -> int:
    """Return where *model* stands in the list: what is on the card or on its way, what is in host memory, the rest."""
    on_card = model.tier == "vram" or model.state == "loading"
    return 0 if on_card else _RAM if model.tier == "ram" else _RAM + 1


def _model(model: ModelFacts, pen: Pen, *, cells: int, sizes: bool) -> Line:
    """Return ``● name ready 6.46 GiB pinned``: the name gives way first."""
    if model.state == "loading":
        glyph, style = pen.glyphs.loading, "yellow"
        done = "" if model.fraction is None else f" {100 * model.fraction:.0f} %"
        state = Text.assemble((f"loading{done}", style))
    elif model.tier == "vram":
        glyph, style = pen.glyphs.ready, "green"
        state = ink("ready", QUIET)
    else:
        glyph, style = pen.glyphs.in_ram, QUIET
        state = ink("in RAM", QUIET)
    if sizes and model.size_bytes:
        state += ink(f" {size_text(model.size_bytes)}", QUIET)
    if model.pinned:
        state += ink(" pinned", "cyan")
    return _held(model.name, state, pen, glyph=(glyph, style), cells=cells)


def _warm(hint: str, pen: Pen, *, cells: int) -> Line:
    return _held(hint, ink("warm", QUIET), pen, glyph=(pen.glyphs.ready, "green"), cells=cells)


def _held(name: str, state: Line, pen: Pen, *, glyph: tuple[str, str], cells: int) -> Line:
    shown = pen.safe(name, cells=min(NAME_CELLS_MAX, max(1, cells - state.cell_len - 3)))
    return Text.assemble(glyph, " ", shown, " ") + state


def _limited(pieces: Sequence[Line], cells: int, lines_max: int) -> list[Line]:
    """Return *pieces* in at most *lines_max* lines; what does not fit is counted."""
    lines = flow(pieces, cells)
    kept = len(pieces)
    while len(lines) > lines_max and kept > 0:
        kept -= 1
        lines = flow([*pieces[:kept], ink(f"+{len(pieces) - kept} more", QUIET)], cells)
    return lines


def _reason_lines(runner: RunnerFacts, columns: Columns, pen: Pen) -> list[Line]:
    """Return why a runner is not ready, in words, below it; a stage of its start stands beside it instead."""
    if not runner.reason or runner.state in {"ready", "starting"}:
        return []
    style = "red" if runner.state == "failed" else "yellow"
    text = pen.safe(runner.reason, cells=500)
    inner = columns.width - columns.index - 2
    return [_indented(ink(f"  {line}", style), columns) for line in wrap(text, inner, lines_max=2, pen=pen)]
