"""The error tree, split by whose fault: ClientError or ServerError.

A class carries a stable `code` and `retryable`, never a transport's number: each door (REST, gRPC, WebSocket)
owns one table from code to its own statuses. The docstring is the default message.
"""

from __future__ import annotations

from typing import ClassVar


class SerinusError(Exception):
    """Something went wrong. is_counted: the gateway's metrics have it already."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    is_counted: bool = False

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.retry_after_s = retry_after_s

    @property
    def message(self) -> str:
        return str(self.args[0])


class ClientError(SerinusError):
    """The request cannot be served as it is."""

    code = "invalid_request"


class InvalidInput(ClientError):
    """The request's inputs do not fit the model's signature."""

    code = "invalid_input"


class ContextExceeded(InvalidInput):
    """The prompt, or what it asks for, is longer than the model's context."""

    code = "context_length_exceeded"


class Malformed(ClientError):
    """The request could not be read."""

    code = "malformed"


class Unauthenticated(ClientError):
    """A valid API key is needed: send it as 'Authorization: Bearer ser_<id>.<secret>'."""

    code = "unauthenticated"


class Forbidden(ClientError):
    """This key may not do that."""

    code = "forbidden"


class NotFound(ClientError):
    """There is no such thing here."""

    code = "not_found"


class MethodNotAllowed(ClientError):
    """Method Not Allowed"""

    code = "method_not_allowed"


class TooLarge(ClientError):
    """The request body is larger than this server accepts."""

    code = "too_large"


class UnsupportedEncoding(ClientError):
    """Compressed request bodies are not supported: send the body without Content-Encoding."""

    code = "unsupported_encoding"


class Unsupported(ClientError):
    """This server does not support that."""

    code = "unsupported"


class Cancelled(ClientError):
    """The caller cancelled the request."""

    code = "cancelled"


class RateLimited(ClientError):
    """This key has used up its rate for now."""

    code = "rate_limited"
    retryable = True


class PoisonInput(ClientError):
    """The model failed on exactly this input."""

    code = "poison_input"


class Rejected(ClientError):
    """The artifact cannot be served.

    `reason` names the cause for a person, `remedy` the way out, `check` the step of the checklist that failed.
    `format`: what was recognised all the same, where Serinus can do something with it ("torch_pickle": convert it).
    """

    code = "rejected"

    def __init__(self, reason: str, *, remedy: str = "", check: str = "parse", format: str = "") -> None:  # noqa: A002  # a version's `format`
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.check = check
        self.format = format


class Conflict(ClientError):
    """Somebody else changed this in the meantime: read it again."""

    code = "conflict"


class ServerError(SerinusError):
    """The server failed."""

    code = "internal"


class Overloaded(ServerError):
    """Exceeds maximum queue size"""

    code = "overloaded"
    retryable = True


class DeadlineExceeded(ServerError):
    """Request timeout expired"""

    code = "deadline_exceeded"


class NotReady(ServerError):
    """No replica of this model version is ready."""

    code = "not_ready"
    retryable = True


class ReplicaLost(ServerError):
    """The replica was lost before it answered."""

    code = "replica_lost"
    retryable = True

    def __init__(
        self, message: str | None = None, *, retry_after_s: float | None = None, last_token: int | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        # of a text that had begun: the index from 0 of the last token that came, counted over all choices
        self.last_token = last_token


class SequenceLost(ServerError):
    """The replica that held this sequence is gone: start the sequence anew."""

    code = "sequence_lost"


class ModelFailed(ServerError):
    """The model raised an error."""

    code = "model_failed"


class InvalidOutput(ServerError):
    """The model's answer holds NaN or infinity, which this version does not give out."""

    code = "invalid_output"


class OutOfMemory(ServerError):
    """The model ran out of memory."""

    code = "out_of_memory"


class StorageFull(ServerError):
    """The artifact store has no space left: free some, or archive versions that nobody needs."""

    code = "storage_full"


class Draining(ServerError):
    """This server is shutting down."""

    code = "draining"
    retryable = True


def _leaves(cls: type[SerinusError]) -> list[type[SerinusError]]:
    found = [cls]
    for sub in cls.__subclasses__():
        found += _leaves(sub)
    return found


def by_code(code: str) -> type[SerinusError]:
    """The class that bears `code`; ServerError for a code that this build does not know."""
    return BY_CODE.get(code, ServerError)


BY_CODE: dict[str, type[SerinusError]] = {cls.code: cls for cls in _leaves(SerinusError)}
BY_CODE["internal"] = ServerError
BY_CODE["invalid_request"] = ClientError
