"""``python -P -m falctl.router``: started by the supervisor, which hands down the sockets and the board."""

from __future__ import annotations

from pathlib import Path

from falctl import lifeline
from falctl.wire import RouterSpec


def main() -> None:
    """Tie this process to its supervisor before anything heavy is imported, then serve."""
    control = lifeline.begin(guarded=False)
    spec = control.spec
    assert isinstance(spec, RouterSpec), "this process was spawned as a router"
    from falctl import logs
    from falctl.home import Home
    from falctl.router.process import serve

    logs.configure(spec.config["log"]["level"])
    serve(spec, control, Home(Path(spec.home)))


if __name__ == "__main__":
    main()
