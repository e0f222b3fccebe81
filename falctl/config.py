"""The configuration as values: every key, its default, its bounds, and why one would change it."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from falctl.config_values import (
    FOR_EVER,
    Budget,
    Bytes,
    Folder,
    GpuChoice,
    Gpus,
    KeepAlive,
    KeyHash,
    Number,
    Origin,
    PolicyName,
    Seconds,
    Text,
    Whole,
    format_duration,
)

__all__ = [
    "AppConfig",
    "Bytes",
    "CacheConfig",
    "Config",
    "FilesConfig",
    "GpuChoice",
    "LogConfig",
    "ModelsConfig",
    "QueueConfig",
    "RoutingConfig",
    "RunnersConfig",
    "Seconds",
    "Section",
    "ServerConfig",
    "SimulatedConfig",
]


class Section(BaseModel):
    """A table of the file: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


UNCOUNTED_MODELS_MAX: Final = 3
"""Models of a cache whose bytes nobody counts, where `cache.max_models` is 0."""

CROSS_CHECK: Final = "cross_check"
"""Type of an error between keys; its context names the ``key`` to blame and the ``problem`` with the fix."""


def _refusal(problem: str, *, key: str) -> PydanticCustomError:
    return PydanticCustomError(CROSS_CHECK, "{key} {problem}", {"key": key, "problem": problem})


def is_loopback(host: Text) -> bool:
    """Return whether a socket bound to *host* can be reached from this machine only; unknown names cannot promise it."""
    if host == "localhost":
        return True
    from ipaddress import ip_address  # only pydantic's core is needed for a default configuration

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class ServerConfig(Section):
    """The HTTP edge."""

    host: Text = Field(
        default="127.0.0.1", description="address to listen on; any other than loopback needs api_keys"
    )
    port: Whole = Field(default=8808, ge=0, le=65535, description="0 takes a free port")
    tls: Literal["off", "on"] = Field(
        default="off", description="speak TLS on tls_port, too, with a certificate of our own: falctl env"
    )
    tls_port: Whole = Field(default=8843, ge=0, le=65535, description="0 takes a free port")
    hosts: tuple[Text, ...] = Field(
        default=(), description="names besides loopback that a Host header may carry"
    )
    allow_origins: tuple[Origin, ...] = Field(
        default=(), description='browser origins that may call us: ["http://localhost:3000"]; "*" is any'
    )
    api_keys: tuple[KeyHash, ...] = Field(
        default=(), description="hashes as `falctl key` prints them; empty: no key is asked for"
    )
    max_body: Bytes = Field(
        default=64 << 20, ge=1024, le=4 << 30, description="a larger request body is answered 413"
    )
    header_timeout: Seconds = Field(
        default=10.0, gt=0, le=3600, description="a client that takes longer to send its headers is cut off"
    )
    body_timeout: Seconds = Field(
        default=30.0, gt=0, le=3600, description="longest pause in a request body before 408"
    )
    send_timeout: Seconds = Field(
        default=60.0, gt=0, le=3600, description="longest a client may block our answer before it is cut off"
    )
    keep_alive: Seconds = Field(
        default=75.0, gt=0, le=3600, description="an idle connection is kept this long"
    )

    @model_validator(mode="after")
    def _open_only_with_keys(self) -> Self:
        if not self.api_keys and not is_loopback(self.host):
            problem = (
                "is open to the network without API keys; "
                'put what `falctl key` prints into server.api_keys, or write "127.0.0.1"'
            )
            raise _refusal(problem, key="host")
        return self


class QueueConfig(Section):
    """What may wait."""

    max: Whole = Field(
        default=1000, ge=1, le=1_000_000, description="waiting requests; one more is answered 429"
    )
    max_per_client: Whole = Field(
        default=500,
        ge=0,
        le=1_000_000,
        description="of these, of one API key or address, so that others find a place, too; 0 is as many as max",
    )
    max_bytes: Bytes = Field(
        default=1 << 30,
        ge=1 << 20,
        le=1 << 40,
        description="bytes of request bodies held in memory; beyond it 429",
    )
    keep: Seconds = Field(
        default=3600.0,
        gt=0,
        le=365 * 86400,
        description="results and logs of jobs under /queue are deleted after this long, not before their webhooks are told",
    )
    max_disk: Bytes = Field(
        default=10 << 30,
        ge=1 << 20,
        le=1 << 50,
        description="bytes of jobs on the disk; beyond it the oldest results leave, then a submission is answered 507",
    )


class RoutingConfig(Section):
    """How a request finds its runner."""

    policy: PolicyName = Field(
        default="auto",
        description='"auto" learns costs and loads what pays, "affinity" only holds for a busy warm runner, "fal" never does, two are blind',
    )
    locality: Number = Field(
        default=1.0,
        ge=0.1,
        le=10.0,
        description="auto: the price of a further copy of a model; higher is fewer loads and longer waits",
    )
    hint_from: Text = Field(
        default="model", description='body field taken as hint when the header is absent; "" is off'
    )
    hold: Seconds = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="affinity: longest a request waits for a busy warm runner while another is idle",
    )
    bypass_max: Seconds = Field(
        default=30.0,
        ge=0,
        le=86400,
        description="affinity: a request that waited this long goes next, warm or not",
    )


class RunnersConfig(Section):
    """The runner processes."""

    app: Text = Field(
        default="runners.diffusion:AnyModelRunner", description="module:Class or path.py::Class"
    )
    gpus: Gpus = Field(
        default="all",
        description='"all", "none", [0, 2], UUIDs, [0, 0] for two on one card, [[0, 1]] for one on two',
    )
    count: Whole = Field(default=0, ge=0, le=64, description="number of runners; 0 is one per entry of gpus")
    cpu_count: Whole = Field(default=2, ge=1, le=64, description="CPU runners on a machine without a GPU")
    threads: Whole = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU threads per runner (OMP_NUM_THREADS); 0 shares the cores out",
    )
    setup_timeout: Seconds = Field(
        default=600.0, gt=0, le=86400, description="longest from spawn to ready; then the runner is killed"
    )
    request_timeout: Seconds = Field(
        default=3600.0,
        gt=0,
        le=7 * 86400,
        description="longest a request or a load may run; then its runner is killed",
    )
    stall_timeout: Seconds = Field(
        default=120.0, gt=0, le=86400, description="executing without a sign of life for this long: killed"
    )
    drain_timeout: Seconds = Field(
        default=30.0, ge=0, le=86400, description="on Ctrl-C running requests get this long to finish"
    )
    teardown_timeout: Seconds = Field(
        default=10.0, gt=0, le=3600, description="the app's teardown() gets this long before SIGKILL"
    )
    restarts_max: Whole = Field(
        default=5,
        ge=0,
        le=1000,
        description="exits within restarts_window before a runner is given up as failed",
    )
    restarts_window: Seconds = Field(
        default=600.0,
        gt=0,
        le=86400,
        description="the exits that count for restarts_max; older ones are forgiven",
    )
    backoff_min: Seconds = Field(
        default=1.0, gt=0, le=3600, description="pause before the first restart; doubles with every failure"
    )
    backoff_max: Seconds = Field(default=60.0, gt=0, le=3600, description="longest pause before a restart")

    @model_validator(mode="after")
    def _backoff_is_a_range(self) -> Self:
        if self.backoff_min > self.backoff_max:
            longest = format_duration(self.backoff_max)
            problem = f"is longer than runners.backoff_max, which is {longest}; raise that or lower this"
            raise _refusal(problem, key="backoff_min")
        return self


class AppConfig(Section):
    """One of several apps, in place of runners.app; NAME is the alias by which clients address it, /run/{owner}/NAME."""

    app: Text = Field(description="module:Class or path.py::Class")
    gpus: Gpus = Field(
        default="all",
        description='as runners.gpus; "all": of those that runners.gpus allows and no app names, a share with who says the same',
    )
    count: Whole = Field(
        default=0, ge=0, le=64, description="number of runners of this app; 0 is one per entry of gpus"
    )
    cpu_count: Whole = Field(
        default=0, ge=0, le=64, description="its CPU runners where it has no GPU; 0 is runners.cpu_count"
    )
    max_models: Whole | None = Field(
        default=None, ge=0, le=256, description="as cache.max_models, which counts where this is not written"
    )
    keep_alive: KeepAlive | None = Field(
        default=None, description="as cache.keep_alive, which counts where this is not written"
    )
    preload: tuple[Text, ...] | None = Field(
        default=None, description="as cache.preload, which counts where this is not written"
    )


_APPS_CACHE_KEYS: Final = ("max_models", "keep_alive", "preload")
"""Keys of [cache] that an app's own table may say."""


class CacheConfig(Section):
    """The models a runner keeps."""

    max_models: Whole = Field(
        default=0,
        ge=0,
        le=256,
        description=f"most models loaded per runner; 0: what fits in bytes, or {UNCOUNTED_MODELS_MAX} where an app loads what nobody can count",
    )
    keep_alive: KeepAlive = Field(
        default=FOR_EVER,
        description="a model that is idle this long leaves the card for host memory, and that after as long again",
    )
    keep_alive_by: dict[Text, KeepAlive] = Field(
        default={},
        description='the same for single models: { "sdxl-turbo" = "1h", "flux" = -1 }; a request may say its own, X-Falctl-Keep-Alive',
    )
    preload: tuple[Text, ...] = Field(
        default=(),
        description='models to load as soon as runners are ready: "MODEL" where it costs least, "MODEL@2" on runner 2',
    )
    host_memory: Budget = Field(
        default=None,
        description='bytes of weights that the runners hold in memory they share; "auto" is half of what is available at the start, 0: they share none, and each holds its own',
    )
    cpu_memory: Budget = Field(
        default=None,
        description='bytes that a CPU runner may fill with models and drawings; "auto" shares half of what is available at the start among them',
    )
    reserve_vram: Bytes = Field(
        default=512 << 20,
        ge=0,
        le=1 << 50,
        description="bytes of each card that are left to other programs; idle models leave when those grow into it",
    )


class ModelsConfig(Section):
    """Which models AnyModelRunner may load."""

    paths: tuple[Folder, ...] = Field(
        default=(),
        description="folders in which a model folder is looked up by name; a relative one starts at this file",
    )
    allow: tuple[Text, ...] = Field(
        default=(), description='Hub ids that may be fetched: ["stabilityai/sdxl-turbo"]'
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description='"auto": bfloat16 where the card can, else float16; float32 on a CPU'
    )


class FilesConfig(Section):
    """Files we serve: what apps store, what clients send."""

    keep: Seconds = Field(
        default=3600.0, gt=0, le=365 * 86400, description="a stored file is deleted after this long"
    )
    max_upload: Bytes = Field(
        default=4 << 30, ge=1024, le=1 << 40, description="a larger file of a client's is answered 413"
    )


class SimulatedConfig(Section):
    """Costs of runners/simulated.py when a request names none."""

    load_s: Number = Field(default=0.4, ge=0, le=3600, description="seconds to load a model")
    exec_s: Number = Field(default=0.04, ge=0, le=3600, description="seconds to run one")
    size: Bytes = Field(default=7 << 30, ge=0, le=1 << 50, description="bytes a model is said to take")


class LogConfig(Section):
    """What is printed."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug prints a line per request"
    )


class Config(Section):
    """Everything that config.toml can say."""

    server: ServerConfig = ServerConfig()
    queue: QueueConfig = QueueConfig()
    routing: RoutingConfig = RoutingConfig()
    runners: RunnersConfig = RunnersConfig()
    cache: CacheConfig = CacheConfig()
    models: ModelsConfig = ModelsConfig()
    files: FilesConfig = FilesConfig()
    simulated: SimulatedConfig = SimulatedConfig()
    log: LogConfig = LogConfig()
    apps: dict[Text, AppConfig] = {}
    """By alias; empty: falctl runs the one app `runners.app`, which has no alias."""

    @property
    def app_names(self) -> str:
        """Return what is run, in words: the app, or the aliases of several."""
        return ", ".join(self.apps) or self.runners.app

    def cache_of(self, alias: str) -> CacheConfig:
        """Return `cache` as it is for the app *alias*: with what its table says instead; of no app, as it is."""
        app = self.apps.get(alias)
        said = {} if app is None else {key: getattr(app, key) for key in _APPS_CACHE_KEYS}
        return self.cache.model_copy(update={key: value for key, value in said.items() if value is not None})
