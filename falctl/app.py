"""What an app author imports: `App`, `endpoint` and the context a running app gets. Nothing here starts anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    from falctl.toolkit.model_cache import ModelCache
    from falctl.toolkit.model_source import ModelSource
    from falctl.toolkit.steps import Preview, StepEnd

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M")

ENDPOINT_MARK = "__falctl_endpoint__"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route of an app: the path, and the name of the method that answers POST on it."""

    path: str
    method: str


@dataclass(frozen=True, slots=True)
class SimulatedCosts:
    """The `[simulated]` section of the configuration, for runners/simulated.py."""

    load_s: float
    exec_s: float
    size_bytes: int


class RunnerContext(Protocol):
    """What the host tells an app about the runner it lives in; ``App.runner`` holds it from before `setup`."""

    @property
    def runner(self) -> int:
        """Return the runner's position in the fleet, from 0."""
        ...

    @property
    def device(self) -> str:
        """Return ``"cuda"`` when this runner is pinned to one card or more, else ``"cpu"``."""
        ...

    @property
    def models_paths(self) -> tuple[Path, ...]:
        """Return the folders of `models.paths`, in which local models are looked for."""
        ...

    @property
    def models_allow(self) -> tuple[str, ...]:
        """Return the Hub ids that `models.allow` lists."""
        ...

    @property
    def models_dtype(self) -> str:
        """Return `models.dtype`: ``"auto"`` or the name of a torch dtype."""
        ...

    @property
    def simulated(self) -> SimulatedCosts:
        """Return the `[simulated]` section."""
        ...

    def model_cache(
        self,
        load: Callable[[str], M] | None = None,
        *,
        unload: Callable[[M], None] | None = None,
        check: Callable[[str], object] | None = None,
        overlaps: bool = False,
    ) -> ModelCache[M]:
        """
        Return a cache of at most `cache.max_models` models (3 if that is 0) that publishes the hints whenever it changes.

        *load* makes the model of a name (it may raise; then nothing is cached); without one the app loads itself,
        and puts its models in: ``cache[name] = model``. *unload* frees what a dropped
        model holds beyond its Python references. *check* is called before any model is dropped for a load, and
        raises if there can be no such model: a wrong name then costs no warm one. *overlaps*: *load* may run on
        another thread while a request executes, which it may only if it moves bytes and constructs nothing.
        """
        ...

    def pipeline_cache(self, find: Callable[[str], ModelSource], *, joint: str = "") -> ModelCache[Any]:
        """
        Return a cache of diffusers pipelines, which counts their bytes and publishes the hints whenever it changes.

        *find* says where the model of a name is, and raises a `RequestError` for one that may not be loaded; it is
        asked again and again, and must be quick. What is loaded is a folder of safetensors files, in `models.dtype`;
        a part that two pipelines have in common is held once. Pipelines leave the device for host memory, and that
        for their files, by what they cost; the modules stay the same objects. A lease or a run that is told what is
        to be drawn makes room for it, too. Blocking: imports torch and diffusers, which takes seconds; call it in
        `setup`. What a pipeline's weights are must not be changed, by fusing a LoRA for instance: those of
        `ModelSource.loras` are adapters ``lora0``, ``lora1`` beside them, whose scales ``pipeline.set_adapters`` sets.

        *joint* is what stands between a model's name and what is laid upon it, ``+`` in ``base+lora``: who holds the
        one then counts as nearly warm for the other, and a request whose body has ``loras: [{"path": ...}]`` beside its
        model is for the two together, as `falctl.toolkit.name_with_loras` calls them.
        """
        ...

    def keep_alive(self, duration: str | float) -> None:
        """
        Say how long the models that this thread's request uses may idle afterwards: ``"10m"``, seconds, 0, or -1, for ever.

        Raises:
            BadRequestError: *duration* is no such time.
        """
        ...

    @property
    def cancelled(self) -> bool:
        """Return whether the request served by this thread has been cancelled, for work that reports no steps."""
        ...

    def progress(self, step: int, steps: int, preview: Preview | None = None) -> None:
        """
        Report that the request served by this thread has done *step* of *steps*; shown, and a sign of life.

        *steps* is 0 if nobody knows. *preview* makes a picture of how far it is; it is called only where somebody
        has asked for previews, and at most every 0.5 s.

        Raises:
            RequestCancelled: the client has cancelled the request. Let it pass.
        """
        ...

    def steps(
        self,
        pipeline: object,
        *,
        total: int | None = None,
        size: tuple[int, int] | None = None,
        callback: StepEnd | None = None,
    ) -> AbstractContextManager[dict[str, Any]]:
        """
        Report each denoising step that a diffusers *pipeline* does inside the block, and end it when it is cancelled.

        ``with self.runner.steps(pipe) as watched: images = pipe(prompt, **watched).images`` works with every
        pipeline. *total* is the number of steps asked for; None: what the scheduler says. *size*, width and height
        of the picture, helps previews of pipelines whose latents do not tell it (FLUX). *callback* is your own
        ``callback_on_step_end``.

        Raises:
            RequestCancelled: inside the block, within one step. The pipeline stays as good as it was.
            TypeError: there is a *callback*, and this pipeline takes none.
        """
        ...


class App:
    """
    Base class of an app; one instance lives in each runner process.

    Subclasses define at least one `endpoint`. `setup` runs once, before the runner is ready; a request never
    sees a half-set-up app. Sync endpoints, `setup`, `teardown` and `provide_hints` run on the runner's executor
    thread, async ones on its event loop.
    """

    max_multiplexing: ClassVar[int] = 1
    """How many requests one runner serves at the same time: its slots."""

    runner: RunnerContext
    """Set by the host before `setup`."""

    def setup(self) -> Any:
        """Load whatever every request needs; may be ``async``. Raising ends the start of this runner."""

    def teardown(self) -> Any:
        """Release what `setup` took; may be ``async``. Runs once, after the runner has drained."""

    def handle_exit(self) -> Any:
        """
        Hear that the runner will be stopped, while requests still run: those that can end early may be told to.

        Called once, on the main thread; must return at once.
        """

    def provide_hints(self) -> Iterable[str]:
        """
        Return the hints this runner is warm for right now; empty means it takes anything.

        An app that does not override this gives no hints at all, which is not the same as giving none now: then
        requests with equal hints go where the last one was served.
        """
        raise NotImplementedError


def endpoint(path: str) -> Callable[[F], F]:
    """
    Mark a method as answering POST *path*.

    The decorator only marks: the host collects the marks, so importing an app has no side effects.

    Raises:
        ValueError: *path* does not start with "/".
    """
    if not path.startswith("/"):
        msg = f"endpoint path must start with '/': {path!r}"
        raise ValueError(msg)

    def mark(method: F) -> F:
        setattr(method, ENDPOINT_MARK, path)
        return method

    return mark


def endpoints_of(app_class: type[App]) -> tuple[Endpoint, ...]:
    """Return the endpoints of *app_class* and its bases, sorted by path; an override without a mark hides one."""
    found: dict[str, Endpoint] = {}
    for klass in reversed(app_class.__mro__):
        for name, value in vars(klass).items():
            found.pop(name, None)
            if hasattr(value, ENDPOINT_MARK):
                found[name] = Endpoint(path=getattr(value, ENDPOINT_MARK), method=name)
    return tuple(sorted(found.values(), key=lambda e: e.path))


def gives_hints(app_class: type[App]) -> bool:
    """Return whether *app_class* overrides `App.provide_hints`."""
    return app_class.provide_hints is not App.provide_hints
