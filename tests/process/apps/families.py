"""Apps whose runner has children of its own, and one that gets stuck in its setup()."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from pathlib import Path

from falctl import App, endpoint


class Pids(App):
    """Answers with the process ids that `setup` noted, its own first."""

    def setup(self) -> None:
        self.pids = [os.getpid()]

    @endpoint("/pids")
    def pids_(self) -> list[int]:
        return self.pids


class Subprocess(Pids):
    """A child in the same process group, as a download or a compiler would be."""

    def setup(self) -> None:
        super().setup()
        self.pids.append(subprocess.Popen(["sleep", "1000"]).pid)


class Forked(Pids):
    """A forked copy of the runner itself: it inherits every descriptor, the control channel's too."""

    def setup(self) -> None:
        super().setup()
        if (pid := os.fork()) == 0:
            while True:
                signal.pause()
        self.pids.append(pid)


class Anonymous(Pids):
    """A child that has inherited nothing of the environment, so that only its process group tells whose it is."""

    def setup(self) -> None:
        super().setup()
        self.pids.append(subprocess.Popen(["/bin/sleep", "1000"], env={}).pid)


class Daemon(Pids):
    """A grandchild that has left the process group and the session."""

    def setup(self) -> None:
        super().setup()
        script = "setsid sleep 1000 & echo $!; wait"
        self._shell = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
        assert self._shell.stdout is not None
        grandchild = int(self._shell.stdout.readline())
        self.pids += [self._shell.pid, grandchild]


class Escaped(Pids):
    """A grandchild that has left process group, session and environment behind."""

    def setup(self) -> None:
        super().setup()
        script = "env -i setsid sleep 1000 >/dev/null & echo $!"
        shell = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=True)
        self.pids.append(int(shell.stdout))


class StuckInSleep(App):
    """Its setup() never returns, but lets other threads run."""

    def setup(self) -> None:
        _say_stuck()
        threading.Event().wait()

    @endpoint("/")
    def never(self) -> None: ...


class StuckInC(App):
    """Its setup() sits in C code that keeps the interpreter's lock, with a grandchild beside it."""

    def setup(self) -> None:
        subprocess.Popen(["setsid", "sleep", "1000"])
        _say_stuck()
        ctypes.PyDLL(None).sleep(1000)

    @endpoint("/")
    def never(self) -> None: ...


def _say_stuck() -> None:
    Path(os.environ["FALCTL_TEST_STUCK"]).touch()
