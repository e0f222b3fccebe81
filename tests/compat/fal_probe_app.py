"""A real fal.App that shows what the host does with it."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import fal
from fal.exceptions import AppException, FieldException
from fal.toolkit import FAL_PERSISTENT_DIR, File, Image
from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from tests.wait import until

GATE_S = 60.0


def _is_public(ip: str) -> bool:
    return ip == "203.0.113.7"


class Ask(BaseModel):
    what: str = Field(min_length=1)
    arg: str = ""


class Probe(fal.App, name="probe", keep_alive=300):
    machine_type = "GPU-H100"
    requirements: ClassVar = ["no-such-package==1"]
    secrets: ClassVar = ["A_SECRET_THAT_IS_NOT_THERE"]
    max_multiplexing = 2

    def setup(self) -> None:
        self.models: dict[str, int] = {}
        self.setup_thread = threading.current_thread().name
        self.hint_threads: set[str] = set()
        self.state = os.environ["FAL_RUNNER_STATE"]
        self.leaving = threading.Event()

    def handle_exit(self) -> None:
        print("HANDLE_EXIT on", threading.current_thread().name)
        self.leaving.set()

    def teardown(self) -> None:
        print("TEARDOWN in", os.environ["FAL_RUNNER_STATE"])

    def provide_hints(self) -> list[str]:
        self.hint_threads.add(threading.current_thread().name)
        return list(self.models)

    @fal.endpoint("/")
    def run(self, ask: Ask, response: Response) -> dict[str, object]:
        response.headers["x-fal-billable-units"] = "2"
        match ask.what:
            case "load":
                self.models[ask.arg] = 1
            case "app":
                raise AppException("the app says no", 418)
            case "field":
                raise FieldException("what", "bad what")
            case "bug":
                raise ValueError("a bug: " + ask.arg)
            case "oom":
                raise RuntimeError("CUDA error: out of memory")
            case "unavailable":
                raise AppException("not today", 503)
            case "stop":
                response.headers["x-fal-stop-runner"] = "true"
            case "stay":
                response.status_code = 503
                response.headers["x-fal-stop-runner"] = "false"
            case "own-hints":
                response.headers["X-Fal-Runner-Hints"] = "of,the,app"
            case _:
                pass
        return self.about_this_request()

    @fal.endpoint("/until-exit")
    def until_exit(self, entered: str) -> None:
        Path(entered).touch()
        assert self.leaving.wait(GATE_S)

    def about_this_request(self) -> dict[str, object]:
        request = getattr(self, "current_request", None)  # not in old SDKs
        return {
            "id": None if request is None else request.request_id,
            "thread": threading.current_thread().name,
            "setup_thread": self.setup_thread,
            "hint_threads": sorted(self.hint_threads),
            "states": [self.state, os.environ["FAL_RUNNER_STATE"]],
        }

    @fal.endpoint("/environ")
    def environ(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith(("FAL_", "IS_ISO"))}

    @fal.endpoint("/store")
    def store(self) -> dict[str, str]:
        from PIL import Image as Pil

        picture = Pil.new("RGB", (8, 6), "red")
        made = {
            f"image-{name}": Image.from_pil(picture, repository=name).url for name in ("fal", "fal_v3", "cdn")
        }
        path = Path(FAL_PERSISTENT_DIR) / "there.json"
        path.write_text("{}")
        return {
            **made,
            "image": Image.from_pil(picture).url,
            "bytes": File.from_bytes(b"abc", file_name="a.json").url,
            "path": File.from_path(path).url,
            "data": str(FAL_PERSISTENT_DIR),
        }

    @fal.endpoint("/store_for_ever")
    def store_for_ever(self) -> str:
        wanted = {"object_lifecycle_preference": {"expiration_duration_seconds": None}}
        url: str = File.from_bytes(b"abc", save_kwargs=wanted).url
        return url

    @fal.endpoint("/read")
    def read(self, url: str, folder: str) -> int:
        path: Path = File(url=url).save(Path(folder) / "read", overwrite=True)
        return path.stat().st_size

    @fal.endpoint("/redirected")
    def redirected(self, target: str, folder: str) -> int:
        """Read what a public address leads to that answers with a redirect to *target*."""
        from fal.toolkit.utils import ssrf

        ask = ssrf._request_one_hop

        def hop(parsed: Any, **options: Any) -> Any:
            if parsed.hostname == "203.0.113.7":
                return ssrf.SafeResponse(302, {"location": target})
            return ask(parsed, **options)

        ssrf._request_one_hop = hop
        is_public, ssrf.is_globally_routable_ip = ssrf.is_globally_routable_ip, _is_public
        try:
            path: Path = File(url="http://203.0.113.7/x.json").save(Path(folder) / "read", overwrite=True)
            return path.stat().st_size
        finally:
            ssrf._request_one_hop, ssrf.is_globally_routable_ip = ask, is_public

    @fal.endpoint("/look")
    def look(self, url: str) -> tuple[int, int]:
        width, height = Image(url=url).to_pil().size
        return width, height

    @fal.endpoint("/slowly")
    async def slowly(self) -> None:
        await asyncio.sleep(GATE_S)

    @fal.endpoint("/stream")
    def stream(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            self.models["streamed"] = 1
            yield b"data: 1\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    @fal.endpoint("/together")
    def together(self, folder: str, name: str) -> int:
        """Return how many requests were inside at the same time, once two are."""
        (Path(folder) / name).touch()
        return until(lambda: len(list(Path(folder).iterdir())) == 2, within_s=GATE_S, what="two") or 2


class Impatient(fal.App):
    request_timeout = 1
    termination_grace_period_seconds = 77

    @fal.endpoint("/hang")
    def hang(self) -> None:
        threading.Event().wait()

    @fal.endpoint("/slowly")
    async def slowly(self) -> None:
        await asyncio.sleep(GATE_S)


class Declaring(fal.App, name="my-name", concurrency_buffer=2):
    """It says all that the router is to know, and some that does not hold here."""

    request_start_timeout = 7
    request_timeout = 7200
    startup_timeout = 1800
    max_concurrency = 9
    min_concurrency = 5
    scaling_delay = 3
    app_auth = "private"
    retry_config: ClassVar = {"timeout": {"retries": 1}, "server_error": {"retries": 99}}
    skip_retry_conditions: ClassVar = ["connection_error"]
    data_mounts: ClassVar = ["/data/models/mine", "shared", "/elsewhere", "../x"]

    @fal.endpoint("/")
    def run(self) -> None:
        pass


class UnknownCondition(fal.App):
    skip_retry_conditions: ClassVar = ["rain"]

    @fal.endpoint("/")
    def run(self) -> None:
        pass


class OddRetries(fal.App):
    retry_config: ClassVar = {"timeout": 3}

    @fal.endpoint("/")
    def run(self) -> None:
        pass


class SlowStart(fal.App):
    startup_timeout = 1

    def setup(self) -> None:
        threading.Event().wait()

    @fal.endpoint("/")
    def run(self) -> None:
        pass


class FailsToStart(fal.App):
    def setup(self) -> None:
        raise RuntimeError("no weights")

    @fal.endpoint("/")
    def run(self) -> None:
        pass


class NoHints(fal.App):
    @fal.endpoint("/")
    async def run(self) -> int:
        return 1


class ShortLived(fal.App, keep_alive=1):
    def teardown(self) -> None:
        print("TEARDOWN")

    @fal.endpoint("/")
    def run(self) -> None:
        pass


class Kept(ShortLived, min_concurrency=1):
    pass


class Condition(BaseModel):
    sick: bool


class Sickly(fal.App):
    sick = False

    @fal.endpoint("/")
    def run(self, condition: Condition, response: Response) -> None:
        self.sick = condition.sick
        response.headers["x-fal-runner-health-check"] = "true"

    @fal.endpoint("/check", health_check=fal.HealthCheck(call_regularly=False))
    def check(self) -> None:
        if self.sick:
            raise RuntimeError("I am sick")
        print("shown: checked well")


class Wide(fal.App, num_gpus=2):
    @fal.endpoint("/")
    def run(self) -> None:
        pass


class Negative(fal.App):
    request_timeout = -1

    @fal.endpoint("/")
    def run(self) -> None:
        pass


class Pathless(fal.App):
    pass


class Taken(fal.App):
    @fal.endpoint("/queue")
    def run(self) -> None:
        pass


class NamedAsSettings(fal.App):
    """Its endpoints have names that the SDK reads as settings."""

    @fal.endpoint("/image")
    def image(self) -> str:
        return "image"

    @fal.endpoint("/secrets")
    def secrets(self) -> str:
        return "secrets"
