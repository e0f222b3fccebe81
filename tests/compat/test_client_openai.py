"""OpenAI's own Python client draws with the demo models: sync, async, by URL, as base64, several at once, and its errors."""

from __future__ import annotations

import asyncio
import base64
import io
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from falctl.apikeys import hash_key
from tests.process.harness import Falctl

pytestmark = pytest.mark.process

KEY = "falctl_openai"
MODEL = "digits-ink"
QUICK = {"num_inference_steps": 2}
WITHIN_S = 100.0


@pytest.fixture(scope="module")
def falctl() -> Iterator[Falctl]:
    with Falctl(
        "runners.diffusion:AnyModelRunner",
        args=("--runners", "2"),
        config=f'[server]\napi_keys = ["{hash_key(KEY)}"]\n',
    ) as f:
        yield f


@pytest.fixture
def client(falctl: Falctl) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=f"{falctl.url}/v1", api_key=KEY, timeout=WITHIN_S, max_retries=0, http_client=http
    ) as one:
        yield one


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def base64_of(answer: Any) -> list[str]:
    return [image.b64_json for image in answer.data]


def test_an_image_by_url(falctl: Falctl, client: openai.OpenAI) -> None:
    answer = client.images.generate(model=MODEL, prompt="seven", extra_body=QUICK)
    assert answer.data is not None
    url = answer.data[0].url
    assert url is not None
    assert url.startswith(f"{falctl.url}/files/")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=WITHIN_S) as reply:
        assert picture(reply.read()).size == (64, 64)  # without a key: who knows the name may read it


def test_the_same_seed_draws_the_same_and_several_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": "seven",
        "response_format": "b64_json",
        "size": "64x64",
    }
    three = base64_of(client.images.generate(n=3, extra_body={"seed": 5, **QUICK}, **options))
    alone = [
        base64_of(client.images.generate(extra_body={"seed": seed, **QUICK}, **options))[0]
        for seed in (5, 6, 7)
    ]
    pixels = [[picture(base64.b64decode(one)).tobytes() for one in some] for some in (three, alone)]
    assert pixels[0] == pixels[1]
    assert len(set(pixels[0])) == 3


def test_what_makes_no_difference_here_is_taken(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model=MODEL,
        prompt="seven",
        n=1,
        size="auto",
        quality="high",
        style="vivid",
        user="somebody",
        output_format="webp",
        response_format="b64_json",
        extra_body=QUICK,
    )
    assert picture(base64.b64decode(base64_of(answer)[0])).format == "WEBP"


def test_its_errors_are_openais(falctl: Falctl, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.images.generate(model=MODEL, prompt="seven", size="63x64", extra_body=QUICK)
    assert (bad.value.param, bad.value.type) == ("width", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(model="no-such-model", prompt="seven")
    assert (missing.value.code, "[models]" in missing.value.message) == ("model_not_found", True)
    http = httpx.Client(trust_env=False)
    with (
        openai.OpenAI(base_url=f"{falctl.url}/v1", api_key="wrong", http_client=http) as other,
        pytest.raises(openai.AuthenticationError) as denied,
    ):
        other.images.generate(model=MODEL, prompt="seven")
    assert denied.value.code == "invalid_api_key"


def test_models_are_listed_and_the_warm_ones_are_marked(client: openai.OpenAI) -> None:
    client.images.generate(model=MODEL, prompt="seven", extra_body=QUICK)
    listed = {model.id: model for model in client.models.list()}
    assert {"digits-classic", "digits-ember", "digits-blueprint", MODEL} <= set(listed)
    one = client.models.retrieve(MODEL)
    assert one.object == "model"
    assert (one.model_extra or {})["resident"] is True
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_the_same_without_blocking(falctl: Falctl) -> None:
    async def main() -> tuple[int, list[str]]:
        http = httpx.AsyncClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=f"{falctl.url}/v1", api_key=KEY, timeout=WITHIN_S, http_client=http
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.images.generate(model=MODEL, prompt=word, extra_body=QUICK)
                    for word in ("one", "two")
                )
            )
            return sum(len(answer.data or []) for answer in answers), [
                m.id async for m in client.models.list()
            ]

    count, models = asyncio.run(main())
    assert count == 2
    assert MODEL in models


def test_the_receipt_says_what_a_single_image_cost(client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(model=MODEL, prompt="seven", extra_body=QUICK)
    assert raw.headers["x-falctl-cache"] in ("hit", "ram", "disk", "join")
    assert raw.headers["x-fal-request-id"]
