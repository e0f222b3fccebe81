"""
What the router costs: requests per second, latency and its CPU per request, against nginx over the same runners.

    python -m benchmarks.edge [--seconds 5] [--rounds 3] [--json FILE]

One falctl with two CPU runners and a trivial app; nginx (one worker) proxies to the same two Unix sockets with
keep-alive, which is what people run today: one server per card behind nginx. wrk posts a body of about 100 bytes
from 1, 16 and 64 connections, the two fronts in turn, several rounds; the median round counts. Everything shares the
machine, so that requests per second are those of the runners; the CPU per request is the front's own. Needs Debian's
nginx and wrk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks._report import Table, arguments, packages, publish
from falctl.clock import monotonic_s

CONNECTIONS: Final = (1, 16, 64)
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_UNITS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3}

_NGINX: Final = """
{user}
worker_processes 1; daemon off; pid {home}/nginx.pid; error_log {home}/nginx.err;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
  uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  upstream runners {{ {servers} keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    keepalive_requests 1000000000;
    location / {{ proxy_pass http://runners; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""

_WRK_SCRIPT: Final = """
wrk.method = "POST"
wrk.body = '{"prompt": "seven", "note": "a body of about a hundred bytes, as a small prompt has it, no more"}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["X-Fal-Runner-Hint"] = "model-a"
"""


@dataclass(frozen=True, slots=True)
class Front:
    """A server to measure: where it listens, and the process whose CPU counts."""

    name: str
    url: str
    pid: int


def main() -> None:
    """Measure and publish."""
    parser = arguments(__doc__.splitlines()[1] if __doc__ else "")
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for tool in ("nginx", "wrk"):
        if shutil.which(tool) is None:
            sys.exit(f"benchmarks.edge needs {tool}: apt-get install nginx wrk")
    with tempfile.TemporaryDirectory(prefix="fb") as folder:
        home = Path(folder)
        script = home / "post.lua"
        script.write_text(_WRK_SCRIPT)
        with _falctl(home) as (falctl, sockets), _nginx(home, sockets) as nginx:
            tables = [
                _measure(n, (nginx, falctl), script, seconds=given.seconds, rounds=given.rounds)
                for n in CONNECTIONS
            ]
    publish("edge", tables, json_path=given.json, facts=packages("uvicorn", "uvloop", "httptools", "aiohttp"))


def _measure(
    connections: int, fronts: tuple[Front, ...], script: Path, *, seconds: int, rounds: int
) -> Table:
    found: dict[str, list[dict[str, float]]] = {front.name: [] for front in fronts}
    for number in range(rounds + 1):
        for front in fronts:
            figures = _wrk(front, script, connections=connections, seconds=seconds if number else 1)
            if number:  # the first, short round only warms up
                found[front.name].append(figures)
    rows = {
        name: {metric: statistics.median(r[metric] for r in results) for metric in results[0]}
        for name, results in found.items()
    }
    plural = "s" if connections > 1 else ""
    return Table(f"{connections} connection{plural}", tuple(rows["nginx"]), rows, baseline="nginx")


def _wrk(front: Front, script: Path, *, connections: int, seconds: int) -> dict[str, float]:
    before = _cpu_s(front.pid)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), front.url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = _cpu_s(front.pid) - before
    assert "Non-2xx" not in text, text
    requests = int(_find(r"(\d+) requests in", text)[0])
    return {
        "requests/s": float(_find(r"Requests/sec:\s+([\d.]+)", text)[0]),
        "p50 ms": _ms(*_find(r"50%\s+([\d.]+)(us|ms|s)", text)),
        "p99 ms": _ms(*_find(r"99%\s+([\d.]+)(us|ms|s)", text)),
        "CPU ms per request": 1e3 * spent / requests,
    }


def _find(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} not in:\n{text}"
    return match.groups()


def _ms(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, that *pid* has used (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@contextmanager
def _falctl(home: Path) -> Iterator[tuple[Front, list[str]]]:
    environ = {
        **os.environ,
        "FALCTL_HOME": str(home / "f"),
        "OMP_NUM_THREADS": "1",
        "FALCTL_QUEUE_MAX": "10000",
    }
    command = [sys.executable, "-P", "-m", "falctl"]
    app = f"{Path(__file__).parent / 'apps.py'}::Trivial"
    subprocess.run([*command, "up", "-d", "--gpus", "none", "--port", "0", app], env=environ, check=True)
    try:
        told = subprocess.run([*command, "status", "--json"], env=environ, capture_output=True, check=True)
        status = json.loads(told.stdout)
        front = Front("falctl", status["fleet"]["url"] + "/", status["router"]["pid"])
        yield front, [str(path) for path in (home / "f" / "run").glob("*.sock")]
    finally:
        subprocess.run([*command, "down"], env=environ, check=True)


@contextmanager
def _nginx(home: Path, sockets: list[str]) -> Iterator[Front]:
    port = _free_port()
    config = home / "nginx.conf"
    servers = " ".join(f"server unix:{path};" for path in sockets)
    user = "user root;" if os.geteuid() == 0 else ""  # else its worker could not reach the sockets
    config.write_text(_NGINX.format(user=user, home=home, port=port, servers=servers))
    master = subprocess.Popen(["nginx", "-c", str(config), "-e", str(home / "nginx.err")])
    try:
        yield Front("nginx", f"http://127.0.0.1:{port}/", _worker_of(master.pid))
    finally:
        master.send_signal(signal.SIGQUIT)
        master.wait(10)


def _worker_of(master: int) -> int:
    """Return nginx's one worker, once it is there."""
    deadline_at = monotonic_s() + 10.0
    while monotonic_s() < deadline_at:
        if workers := psutil.Process(master).children():
            return int(workers[0].pid)
        threading.Event().wait(0.05)
    sys.exit("nginx did not start its worker within 10 s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
