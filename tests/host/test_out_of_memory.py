"""Memory that does not suffice while a model of the cache is in use: an error for that request, room for the next."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.host.harness import Host

pytestmark = pytest.mark.process

APP: Final = f"{Path(__file__).parent / 'greedy_app.py'}::Greedy"


def test_a_lease_that_runs_out_is_a_507_and_the_idle_models_leave() -> None:
    with Host(APP, config={"cache": {"max_models": 4}}) as host:
        for model in ("a", "b", "c"):
            process = host.post("/lease", {"model": model}).json
        reply = host.post("/lease", {"model": "c", "greedy": True})
        assert (reply.status, reply.json["error_type"]) == (507, "model_too_large")
        assert "Out of memory with 'c' in use" in reply.json["detail"]
        assert "Tried to allocate 2.00 GiB" in reply.json["detail"]
        assert "Traceback" not in reply.json["detail"]
        assert host.row.hints == ("c",)
        assert "request.out_of_memory" in host.output()
        assert host.post("/lease", {"model": "a"}).json == process, "the runner lives on"


def test_what_runs_out_beside_the_cache_is_a_503_and_the_idle_models_leave() -> None:
    with Host(APP, config={"cache": {"max_models": 4}}) as host:
        process = host.post("/lease", {"model": "a"}).json
        assert host.post("/alone").status == 503
        assert host.row.hints == ()
        assert host.post("/lease", {"model": "b"}).json == process, "the runner lives on"
