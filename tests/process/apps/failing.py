"""Apps that cannot start, each for one reason."""

from __future__ import annotations

import os
import sys
import threading

from falctl import App, endpoint


class NotAnApp:
    """Has nothing to do with falctl."""


class NoEndpoint(App):
    """Nobody could call it."""


class OnReservedPath(App):
    """Wants a path that the router answers."""

    @endpoint("/falctl/mine")
    def mine(self) -> None: ...


class Fine(App):
    """The endpoint that the rest share."""

    @endpoint("/")
    def run(self) -> None: ...


class Raises(Fine):
    def setup(self) -> None:
        msg = "no weights here"
        raise ValueError(msg)


class Exits(Fine):
    def setup(self) -> None:
        os._exit(3)


class ExitsPolitely(Fine):
    def setup(self) -> None:
        sys.exit("bye")


class Hangs(Fine):
    def setup(self) -> None:
        threading.Event().wait()
