"""
A runner that keeps models which cost only time: routing is tried with it, without a GPU.

A model named ``NAME@SECONDS`` takes so long to load, whoever asks for it: a load job knows no more than its name.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Final

from pydantic import BaseModel, Field

from falctl import App, endpoint

_OWN_LOAD: Final = re.compile(r".*@(\d{1,4}(?:\.\d+)?)", re.DOTALL)


class Job(BaseModel):
    """One request, and what it costs; costs left out are those of the model's name or the configuration."""

    model: str = Field(min_length=1, max_length=1024)
    load_s: float | None = Field(None, ge=0, le=3600)
    exec_s: float | None = Field(None, ge=0, le=3600)
    steps: int = Field(1, ge=1, le=10_000)


class Done(BaseModel):
    """What was done."""

    model: str
    loaded: bool
    load_s: float
    exec_s: float
    runner: int


class SimulatedModels(App):
    """Sleeps as long as a load and a run would take."""

    def setup(self) -> None:
        self._load_s = threading.local()
        self.models = self.runner.model_cache(load=self._load, overlaps=True)

    def provide_hints(self) -> Iterable[str]:
        return self.models.resident

    @endpoint("/")
    def run(self, job: Job) -> Done:
        costs = self.runner.simulated
        load_s = self._load_of(job.model) if job.load_s is None else job.load_s
        exec_s = costs.exec_s if job.exec_s is None else job.exec_s
        self._load_s.wanted, self._load_s.spent = load_s, None
        with self.models.lease(job.model):
            for step in range(job.steps):
                _take(exec_s / job.steps)
                self.runner.progress(step + 1, job.steps)
        loaded = self._load_s.spent is not None
        return Done(
            model=job.model,
            loaded=loaded,
            load_s=load_s if loaded else 0.0,
            exec_s=exec_s,
            runner=self.runner.runner,
        )

    def _load(self, name: str) -> str:
        # A load runs on the thread of the request that asked for it, so its cost lies there; a load job has none.
        cost_s = getattr(self._load_s, "wanted", self._load_of(name))
        _take(cost_s)
        self._load_s.spent = cost_s
        return name

    def _load_of(self, name: str) -> float:
        own = _OWN_LOAD.fullmatch(name)
        return self.runner.simulated.load_s if own is None else float(own[1])


def _take(seconds: float) -> None:
    threading.Event().wait(seconds)
