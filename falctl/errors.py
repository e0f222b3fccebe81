"""
Every error falctl raises on purpose, each carrying its own answer.

A `ConfigError` ends the command with exit code 2 and one line; a `StartError` with 1; a `RequestError`
becomes an HTTP answer whose body and ``error_type`` are fal's, so that fal's clients understand them.
`falctl.router.edge.answers` is the one place that renders the latter, `falctl.cli.main` the former.
"""

from __future__ import annotations

from typing import ClassVar, Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_RUNNING: Final = 3
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it: of `falctl up` after Ctrl-C while it started, or a second one while it drained."""
EXIT_CARD_BROKEN: Final = 70
"""Of a runner: its CUDA context is unusable."""
EXIT_OVERDUE: Final = 72
"""Of a runner: a sync endpoint ran for longer than its app allows; nothing else can stop it."""


class FalctlError(Exception):
    """Base of all deliberate errors; a bare ``except FalctlError`` is safe."""

    exit_code: ClassVar[int] = EXIT_FAILED


class ConfigError(FalctlError):
    """The configuration or command line is wrong; the message names the key, the value and the fix."""

    exit_code = EXIT_USAGE


class StartError(FalctlError):
    """Something that was configured correctly failed at run time: a `setup()` that raised, a lost GPU."""


class HostMemoryFullError(FalctlError):
    """The budget for host memory (`cache.host_memory`) has no room for these bytes; nothing is held."""

    def __init__(self, detail: str, *, lacking_bytes: int | None = None) -> None:
        super().__init__(detail)
        self.lacking_bytes = lacking_bytes
        """How many more would do; None: nobody says."""


class NotRunningError(FalctlError):
    """No falctl runs for this user."""

    exit_code = EXIT_NOT_RUNNING


class RequestError(FalctlError):
    """
    A request failed. Carries everything the HTTP edge needs and nothing else.

    ``error_type`` is fal's name for it (X-Fal-Error-Type) where fal has one.
    """

    status: int = 500
    error_type: str = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class BadRequestError(RequestError):
    """The request cannot be understood."""

    status, error_type = 400, "bad_request"


class ParameterError(BadRequestError):
    """A field of the body asks for what is not done; ``param`` names it, None where no single one is at fault."""

    def __init__(self, detail: str, *, param: str | None) -> None:
        super().__init__(detail)
        self.param = param


class UnauthorizedError(RequestError):
    """No valid API key, or no admin token."""

    status, error_type = 401, "unauthorized"


class ForbiddenError(RequestError):
    """A browser origin that `server.allow_origins` does not list."""

    status, error_type = 403, "forbidden"


class NotFoundError(RequestError):
    """Nothing answers at this path."""

    status, error_type = 404, "not_found"


class MethodError(RequestError):
    """What this path is, is not asked for by this method; ``allowed`` are those that it is asked for by."""

    status, error_type = 405, "method_not_allowed"

    def __init__(self, detail: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(detail)
        self.allowed = allowed


class UploadRefusedError(RequestError):
    """Something is sent to an address that nobody was given, or whose time is over."""

    status, error_type = 403, "forbidden"


class BodyTimeoutError(RequestError):
    """The client sent its body too slowly."""

    status, error_type = 408, "body_timeout"


class ConflictError(RequestError):
    """Another request is doing this."""

    status, error_type, retryable = 409, "conflict", True


class BodyTooLargeError(RequestError):
    """The body is over `server.max_body`, or a sent file over `files.max_upload`."""

    status, error_type = 413, "body_too_large"


class WrongHostError(RequestError):
    """The Host header names neither loopback nor a configured host (DNS rebinding)."""

    status, error_type = 421, "wrong_host"


class QueueFullError(RequestError):
    """Admission refused by `queue.max`, `queue.max_per_client` or `queue.max_bytes`."""

    status, error_type, retryable = 429, "concurrent_requests_limit", True


class ClientGoneError(RequestError):
    """The client closed its connection before it was answered; nobody reads this."""

    status, error_type = 499, "client_disconnected"


class ClientCancelledError(RequestError):
    """Somebody had the request cancelled, and its client waits for an answer."""

    status, error_type = 499, "client_cancelled"


class AppAnswerError(RequestError):
    """The app answered, but not with what was needed of it."""

    status, error_type = 502, "unusable_answer"


class ModelFilesError(RequestError):
    """A model's folder is half-written, damaged or replaced, or holds what falctl never reads; it names the file."""

    status, error_type = 422, "model_unusable"


class FilesChangedError(ModelFilesError):
    """Files were written, replaced or removed while they were read; what they are now may be a model, too."""


class RunnerLostError(RequestError):
    """The runner died while the request was in flight."""

    status, error_type, retryable = 503, "runner_disconnected", True


class UnavailableError(RequestError):
    """No runner can take the request now, and none will soon: draining, or every runner FAILED."""

    status, error_type, retryable = 503, "runner_scheduling_failure", True


class StartTimeoutError(RequestError):
    """The request did not start within the time that its client gave it."""

    status, error_type = 504, "request_timeout"


class DeadlineError(RequestError):
    """The request did not end within `runners.request_timeout`."""

    status, error_type, retryable = 504, "request_timeout", True


class ModelTooLargeError(RequestError):
    """The model fits no card of this fleet, or not the one that was asked."""

    status, error_type = 507, "model_too_large"

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: float | None = None,
        model: str | None = None,
        least_bytes: int | None = None,
    ) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.model = model
        """The model that ``least_bytes`` speaks of."""
        self.least_bytes = least_bytes
        """What the model takes at the very least, whatever is drawn with it; None: that was not the reason."""


class LoadFailedError(RequestError):
    """A runner could not load the model; the words are its own."""

    def __init__(self, detail: str, *, status: int, error_type: str) -> None:
        super().__init__(detail)
        self.status, self.error_type = status, error_type


class StorageFullError(RequestError):
    """The job or file cannot be kept: the disk is full, or `queue.max_disk` is reached."""

    status, error_type, retryable = 507, "storage_full", True
