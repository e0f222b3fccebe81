"""
The frame of a host process: what ends it, and with which code.

The app is imported on the main thread before the event loop runs, as some libraries insist on. The process ends by
`os._exit`: an app thread that does not return must not hold it, and the interpreter would wait for that thread.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import uvloop

from falctl import logs
from falctl.app import App
from falctl.config import Config
from falctl.errors import EXIT_FAILED, FalctlError
from falctl.host.fal.sdk import Local, make_local_on_import
from falctl.host.life import Life
from falctl.host.loader import load_app
from falctl.host.prints.capture import Capture
from falctl.host.serving import check_app
from falctl.host.start import start
from falctl.host.telling import one_line, said
from falctl.lifeline import Control
from falctl.wire import Failed, HostSpec, Stage

log = logging.getLogger(__name__)


def run(control: Control) -> NoReturn:
    """Be the host that *control* describes, until it says stop. Call on the main thread."""
    code = EXIT_FAILED
    try:
        code = _run(control)
    except FalctlError as error:
        code = error.exit_code
        control.send(Failed(one_line(str(error)), code))
    except BaseException as error:
        log.exception("host.crashed")
        control.send(Failed(f"the runner crashed: {said(error)}", code))
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(control: Control) -> int:
    spec = control.spec
    assert isinstance(spec, HostSpec), "started as a host"
    config = Config.model_validate(spec.config)
    capture = Capture()
    capture.install()
    # By number: what is written to it at a crash reaches the supervisor even when nobody here reads any more.
    faulthandler.enable(2, all_threads=False)
    logs.configure(config.log.level, to=capture.plain)
    control.send(Stage(one_line(f"importing {spec.app}")))
    make_local_on_import(Local(spec.files_url.rpartition("/")[0], Path(spec.data_dir)))
    app_class = load_app(spec.app, cwd=Path(spec.cwd))
    check_app(app_class, spec, config)
    # Not asyncio.run: it would cancel what is left and wait for it, and an app thread may never return.
    loop = uvloop.new_event_loop()
    code: int = loop.run_until_complete(_live(control, config, app_class=app_class, capture=capture))
    return code


async def _live(control: Control, config: Config, *, app_class: type[App], capture: Capture) -> int:
    life = Life(control, teardown_timeout_s=config.runners.teardown_timeout)
    return await life.live(start(app_class, control, config, capture=capture))
