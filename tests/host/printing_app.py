"""Apps that print in every way that there is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse

from falctl import App, endpoint

log = logging.getLogger("an.app")
print("on import")


class Printing(App):
    max_multiplexing = 2

    def setup(self) -> None:
        print("in setup")

    def provide_hints(self) -> Iterable[str]:
        print("in provide_hints")
        return []

    @endpoint("/ways")
    def ways(self, body: dict[str, Any]) -> None:
        name = body["name"]
        print(name, "print")
        print(name, "stderr", file=sys.stderr)
        sys.stdout.buffer.write(f"{name} bytes\n".encode())
        warnings.warn(f"{name} warning", stacklevel=1)
        log.debug("%s below the level", name)
        log.info("%s info", name)
        log.warning("%s warn", name)
        log.error("%s error", name, exc_info=KeyError("cause"))
        logging.getLogger("falctl.inner").info("ours")
        print(name, "no newline", end="")

    @endpoint("/async")
    async def asynchronous(self, body: dict[str, str]) -> None:
        print(body["name"], "begins")
        await asyncio.gather(asyncio.to_thread(print, body["name"], "in a thread"), self._later(body["name"]))

    async def _later(self, name: str) -> None:
        await asyncio.sleep(0.01)
        print(name, "in a task")

    @endpoint("/stream")
    def stream(self, body: dict[str, str]) -> StreamingResponse:
        def chunks() -> Iterator[str]:
            for n in range(3):
                print(body["name"], n)
                yield str(n)

        return StreamingResponse(chunks())

    @endpoint("/background")
    def background(self) -> PlainTextResponse:
        print("first")
        return PlainTextResponse("", background=BackgroundTask(print, "after the answer"))

    @endpoint("/fail")
    def fail(self) -> None:
        raise ValueError("the secret is 42")

    @endpoint("/fork")
    def fork(self) -> int:
        child = os.fork()
        if not child:
            print("from the child")
            os._exit(0)
        return os.waitpid(child, 0)[1]

    @endpoint("/close")
    def close(self) -> list[Any]:
        sys.stdout.flush()
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        return [sys.stdout.fileno(), sys.stdout.isatty(), sys.stdout.encoding, sys.stderr.name]


class Alone(Printing):
    max_multiplexing = 1

    @endpoint("/natively")
    def natively(self) -> None:
        print("print")
        thread = threading.Thread(target=print, args=("a thread of its own",))
        thread.start()
        thread.join()
        os.write(1, b"a C library\n")
        subprocess.run([sys.executable, "-c", "print('a child')"], check=True)
        os.write(2, b"the last, no newline")

    @endpoint("/loud-child")
    def loud_child(self, body: dict[str, int]) -> None:
        """Holds everything up until its child has written more than any pipe takes."""
        code = f"import sys; sys.stdout.write('x' * 999 + '\\n') ; [print('y' * 999) for _ in range({body['lines']})]"
        subprocess.run([sys.executable, "-c", code], check=True)

    @endpoint("/loud-child-on-the-loop")
    async def loud_child_on_the_loop(self, body: dict[str, int]) -> None:
        self.loud_child(body)

    @endpoint("/abort")
    def abort(self) -> None:
        os.write(2, b"last words of a C library\n")
        os.abort()
