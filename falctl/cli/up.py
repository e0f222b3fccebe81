"""`falctl up`: read the configuration, then be the supervisor, or start one in the background and wait for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TextIO, cast

from falctl import logs
from falctl.cli.policy_check import check_policy
from falctl.config import Config
from falctl.config_load import find_config, load_config
from falctl.core.types import MiB
from falctl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, ConfigError, StartError
from falctl.home import ENV, Home, find_home
from falctl.supervisor.announce import ENV_NOTIFY, Announcer, Terminal, make_announcer
from falctl.supervisor.unblocked import Unblocked
from falctl.supervisor.up import up

LOG_BYTES_MAX: Final = 16 * MiB
"""A detached falctl's log beyond this is set aside at the next start."""


_LAST_WORDS_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What was given on the command line; None: not given."""

    app: str | None
    config: Path | None
    gpus: str | None
    runners: int | None
    port: int | None
    tls: bool = False

    def load(self) -> Config:
        """
        Return the configuration with these options over it. Blocks: a policy of the user's is tried out.

        Raises:
            ConfigError: something in it is wrong; nothing has been started.
        """
        flags = {
            "runners.app": self.app,
            "runners.gpus": self.gpus,
            "runners.count": self.runners,
            "server.port": self.port,
            "server.tls": "on" if self.tls else None,
        }
        here = _here()
        config = load_config(self.config or find_config(here), environ=os.environ, flags=flags)
        check_policy(config.routing.policy, cwd=here)
        return config

    def arguments(self) -> list[str]:
        """Return the command line that gives these options."""
        named = {"--config": self.config, "--gpus": self.gpus, "--runners": self.runners, "--port": self.port}
        given = [word for name, value in named.items() if value is not None for word in (name, str(value))]
        if self.tls:
            given.append("--tls")
        return [*given, *([] if self.app is None else ["--", self.app])]


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        msg = "the current directory has been deleted; cd to one that exists"
        raise ConfigError(msg) from None


def up_command(options: Options, *, detach: bool) -> int:
    """Return the exit code of `falctl up`. Blocks until it ends, or, detached, until it is up."""
    if detach:
        _check_detachable(options)
        options.load()
        return _detach(options, find_home())
    config = options.load()
    output = Unblocked(sys.stderr)
    sys.stderr = cast("TextIO", output)
    try:
        return _be_supervisor(options, config)
    finally:
        output.drain(_LAST_WORDS_S)
        sys.stderr = sys.__stderr__


def _check_detachable(options: Options) -> None:
    """Refuse a configuration that a second process could not read again: it would silently get another one."""
    if options.config is not None and options.config.exists() and not options.config.is_file():
        msg = f"-c {options.config}: with -d the configuration must be a regular file; write it to one"
        raise ConfigError(msg)


def _be_supervisor(options: Options, config: Config) -> int:
    logs.configure(config.log.level)
    detached = ENV_NOTIFY in os.environ
    announcer = make_announcer()
    try:
        return up(config, announcer=announcer, detached=detached, reload=options.load if detached else None)
    except Exception as error:
        _tell_failure(announcer, error, detached=detached)
        raise
    except KeyboardInterrupt:  # before there was a loop that takes signals: nothing has been started
        announcer.done(exit_code=EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED


def _tell_failure(announcer: Announcer, error: Exception, *, detached: bool) -> None:
    if detached:
        announcer.note(f"falctl: {error}")
    announcer.done(exit_code=getattr(error, "exit_code", EXIT_FAILED))


def _detach(options: Options, home: Home) -> int:
    home.make_root()
    read_fd, write_fd = os.pipe()
    with _open_log(home) as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "falctl", "up", *options.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(write_fd,),
            env={**os.environ, ENV_NOTIFY: str(write_fd)},
            start_new_session=True,
        )
    os.close(write_fd)
    terminal = Terminal()
    with os.fdopen(read_fd, "r", encoding="utf-8") as told:
        try:
            return _follow(told, terminal, home)
        except KeyboardInterrupt:
            process.terminate()
            return _follow(told, terminal, home)
        finally:
            terminal.done(exit_code=None)


def _open_log(home: Home) -> BinaryIO:
    """Return the log to append to; one that has grown large is set aside first, over the one set aside before."""
    try:
        if home.log.exists() and home.log.stat().st_size > LOG_BYTES_MAX:
            home.log.replace(home.log.with_suffix(".log.1"))
        return home.log.open("ab")
    except OSError as error:
        msg = f"cannot write {home.log} ({error.strerror}); set {ENV} to a directory you own"
        raise ConfigError(msg) from error


def _follow(told: Iterable[str], terminal: Terminal, home: Home) -> int:
    for line in told:
        table = json.loads(line)
        if "progress" in table:
            terminal.progress(table["progress"])
        if "note" in table:
            terminal.note(table["note"])
        if "done" in table:
            return EXIT_OK if table["done"] is None else int(table["done"])
    msg = f"it ended while it started; its last words are in {home.log}"
    raise StartError(msg)
