"""What a host tells, on its event stream and on the board, in the words of the scheduler."""

from __future__ import annotations

from collections.abc import Iterable

from falctl import wire
from falctl.board.rows import ModelRow, RunnerRow
from falctl.core.events import Failure, LoadEnded, Released, RunnerUp
from falctl.core.sources import Stock, Tier
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId


def hints_of(row: RunnerRow | None) -> frozenset[Hint] | None:
    """Return the hints of a row; where there is none the runner is warm for nothing."""
    hints = () if row is None else row.hints
    return None if hints is None else frozenset(hints)


def pinned_in(row: RunnerRow | None) -> frozenset[Hint]:
    """Return the models that are pinned on a runner."""
    return frozenset(Hint(model.name) for model in _models(row) if model.pinned)


def stock_of(row: RunnerRow | None) -> Stock:
    """Return what a row says of where each model would be loaded from, and of how large each is."""
    return Stock(
        frozenset(Hint(model.name) for model in _models(row) if _is_in_ram(model)),
        {Hint(model.name): model.size_bytes for model in _models(row) if model.size_bytes},
    )


def runner_up(runner: RunnerId, hello: wire.Hello, row: RunnerRow | None) -> RunnerUp:
    """Return what its `Hello` and its row say of a runner that takes work."""
    return RunnerUp(
        runner,
        Epoch(hello.epoch),
        hello.slots,
        tuple(map(RequestId, hello.executing)),
        hints_of(row),
        _caps(hello),
        tuple(map(Hint, hello.loading)),
        pinned_in(row),
        stock_of(row),
    )


def released(runner: RunnerId, message: wire.Released) -> Released:
    """Return the end of a request as its host tells it."""
    tier = None if message.tier == wire.JOINED else _tier(message.tier)
    request, epoch = RequestId(message.request), Epoch(message.epoch)
    return Released(request, runner, epoch, message.exec_s, message.load_s, tier, message.least_bytes)


def load_ended(runner: RunnerId, message: wire.LoadEnded, row: RunnerRow | None) -> LoadEnded:
    """Return the end of a load job as its host tells it."""
    hint, epoch, tier = Hint(message.hint), Epoch(message.epoch), _tier(message.tier)
    failure = Failure(message.status, message.error_type, message.error) if message.status else None
    return LoadEnded(
        runner,
        epoch,
        hint,
        message.ok,
        message.load_s,
        tier,
        hints_of(row),
        message.error,
        failure,
        message.least_bytes,
    )


def _caps(hello: wire.Hello) -> Caps:
    return Caps(
        gpu=hello.gpu,
        loads=hello.loads,
        overlaps=hello.overlaps,
        models_max=hello.models_max or None,
        vram_bytes=hello.vram_bytes or None,
        run_bytes=hello.run_bytes or None,
        joint=hello.joint,
    )


def _models(row: RunnerRow | None) -> Iterable[ModelRow]:
    return () if row is None else row.models


def _is_in_ram(model: ModelRow) -> bool:
    """Return whether a load of *model* comes from host memory; of one on the card: once it has left that."""
    return model.tier == "ram" or (model.tier == "vram" and 0 < model.vram_bytes <= model.ram_bytes)


def _tier(told: str) -> Tier:
    """Return the tier that a host has *told*; a name that we do not know counts as the dearest."""
    return "ram" if told == "ram" else "disk"
