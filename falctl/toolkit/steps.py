"""
The denoising steps of a diffusers pipeline, reported as they are done, so that a cancelled request ends within one.

Most pipelines take a ``callback_on_step_end``. The others (DDPM, PixArt and their like) are watched from outside: a hook
before each call of the denoiser, removed at the end. A denoiser may be called more than once for a step, by guidance
without batches or by a solver of second order: calls at the same timestep are one step.

To cancel, the report raises. A pipeline that is left that way draws the same afterwards; setting its ``_interrupt``
would only have it skip the steps that are left, and decode half a picture.

Imports no torch: what is asked of tensors and modules is asked of whatever the pipeline hands over.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from falctl.toolkit.latents import picture_of

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

DENOISERS: Final = ("unet", "transformer", "transformer_2", "prior", "decoder")
"""Attributes of a pipeline under which diffusers keeps what is called for each step."""

_CALLBACK: Final = "callback_on_step_end"

Preview: TypeAlias = "Callable[[], PilImage | None]"
Report: TypeAlias = Callable[[int, int, "Preview | None"], None]
"""Takes what has been done, of how many (0: nobody knows), and how to make a picture of it; raises to end the drawing."""
StepEnd: TypeAlias = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]
"""A ``callback_on_step_end`` of diffusers."""


def takes_callback(pipeline: object) -> bool:
    """Return whether *pipeline* can be called with a ``callback_on_step_end``."""
    return _CALLBACK in inspect.signature(type(pipeline).__call__).parameters


@contextmanager
def watched(
    pipeline: Any,
    report: Report,
    *,
    total: int | None = None,
    size: tuple[int, int] | None = None,
    callback: StepEnd | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Report each step that *pipeline* does inside the block; give what it is to be called with for that.

    *total* is what *report* is told to be the number of steps; None: what the scheduler says. *size* is that of the
    picture, width and height, for previews of latents that do not tell theirs. *callback* is called after each step, too.

    Raises:
        TypeError: there is a *callback*, and this pipeline takes none.
    """
    steps = _Steps(report, total)
    steps.begin()
    if takes_callback(pipeline):
        yield {_CALLBACK: _Callback(pipeline, steps, size=size, others=callback)}
    elif callback is not None:
        msg = f"{type(pipeline).__name__} takes no {_CALLBACK}, so that yours cannot be called"
        raise TypeError(msg)
    else:
        with ExitStack() as hooks:
            hook = _Hook(pipeline, steps, size=size)
            for module in _denoisers(pipeline):
                hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield {}
    steps.finish()


class _Steps:
    """What has been reported: never more than the total, never less than before."""

    def __init__(self, report: Report, total: int | None) -> None:
        self._report = report
        self._total = total
        self._told = (0, total or 0)

    def begin(self) -> None:
        self._report(*self._told, None)

    def done(self, count: int, rounds: int, preview: Preview) -> None:
        """*count* of *rounds* are done; a second-order solver makes more of them than the steps it was asked for."""
        total = self._total or rounds
        step = count if total == rounds or not rounds else count * total // rounds
        self._told = (max(self._told[0], min(step, total)), total)
        self._report(*self._told, preview)

    def finish(self) -> None:
        total = self._told[1]
        self._report(total, total, None)


class _Callback:
    """A ``callback_on_step_end``, before that of others."""

    def __init__(
        self, pipeline: Any, steps: _Steps, *, size: tuple[int, int] | None, others: StepEnd | None
    ) -> None:
        self._kind = type(pipeline).__name__
        self._steps = steps
        self._size = size
        self._others = others

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors.get("latents")
        rounds = getattr(pipeline, "num_timesteps", None) or len(_timesteps(pipeline))
        self._steps.done(step + 1, rounds, lambda: picture_of(latents, self._kind, self._size))
        if self._others is not None:
            tensors = self._others(pipeline, step, timestep, tensors) or tensors
        return tensors  # a pipeline that gets None fails


class _Hook:
    """Counts the timesteps at which a denoiser is called, on the thread that made this."""

    def __init__(self, pipeline: Any, steps: _Steps, *, size: tuple[int, int] | None) -> None:
        self._pipeline = pipeline
        self._kind = type(pipeline).__name__
        self._steps = steps
        self._size = size
        self._thread = threading.get_ident()
        self._rounds = 0
        self._begun = 0
        self._timestep: object = None

    def __call__(self, _module: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if threading.get_ident() != self._thread:
            return  # another request draws with a pipeline that shares this module
        timestep = _timestep(args, inputs)
        if not self._begun:
            # Only now are they those of this drawing.
            self._rounds = sum(1 for _ in groupby(_timesteps(self._pipeline)))
        if timestep is None or timestep != self._timestep or not self._begun:
            self._begun += 1
            self._timestep = timestep
        sample = _first(args, inputs, ("sample", "hidden_states"))
        self._steps.done(self._begun - 1, self._rounds, lambda: picture_of(sample, self._kind, self._size))


def _denoisers(pipeline: Any) -> list[Any]:
    found = [getattr(pipeline, name, None) for name in DENOISERS]
    return [module for module in found if hasattr(module, "register_forward_pre_hook")]


def _timesteps(pipeline: Any) -> Sequence[float]:
    """Return those that the scheduler of *pipeline* goes through; none: nobody knows."""
    timesteps: Any = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
    return () if timesteps is None else timesteps.tolist()


def _timestep(args: tuple[Any, ...], inputs: dict[str, Any]) -> float | None:
    """
    Return the timestep of a call; None: it cannot be told.

    On a card this waits for what has been asked of it so far, so that a step that is reported has been done.
    """
    value: Any = inputs.get("timestep", args[1] if len(args) > 1 else None)
    if hasattr(value, "flatten"):
        value = value.flatten()[0].item() if value.numel() else None
    return float(value) if isinstance(value, int | float) else None


def _first(args: tuple[Any, ...], inputs: dict[str, Any], names: Sequence[str]) -> Any:
    return args[0] if args else next((inputs[name] for name in names if name in inputs), None)
