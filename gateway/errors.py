"""Every error the gateway raises on purpose, and who is to blame for an upstream's.

    GatewayError
    +-- BadRequest 400                the client's body, parameters or headers
    |   +-- BodyTooLarge 413
    |   +-- BodyTimeout 408
    +-- Unauthenticated 401           one text for unknown, revoked and expired keys
    +-- BudgetExceeded 402            a budget on the key's path has no room for the call
    +-- PermissionDenied 403
    +-- NotFound 404
    |   +-- ModelNotFound 404
    +-- MethodNotAllowed 405
    +-- IdempotencyKeyInUse 409       the call of this Idempotency-Key is still under way
    |   +-- AnswerNotKept 409         it has ended, and its answer cannot be given again
    +-- IdempotencyKeyReused 422      its call was another one
    +-- NotServed 501                 a known endpoint that this gateway does not serve
    +-- RateLimited 429
    +-- StoreUnavailable 503          the database did not answer
    +-- NoDeploymentAvailable 503     nothing is fit to answer; nothing was sent
    +-- Draining 503                  this worker is shutting down
    +-- SwitchedOff 503               the operator's settings keep these routes off
    +-- SettleFailed 500              the answer was complete, its ledger entry is not committed
    +-- Cancelled 499                 the call was given up: the client left, or a drain ran out
    +-- UpstreamError 502             an attempt failed before an answer began
        +-- UpstreamUnreachable       connect refused, timed out, or the name did not resolve
        +-- UpstreamTimeout 504       a deadline passed; `phase` names it
        +-- UpstreamProtocolError     what came back is not HTTP, or breaks its own framing
        +-- UpstreamRefused           answered with an error status (`upstream_status`)
        +-- AgentLost                 an agent's connection was lost, or could not be reached
        +-- AgentFailed               an agent said, or showed, that it cannot answer; `cause` is its word
        +-- UpstreamInterrupted       the answer began and then broke; raised from Reply.chunks
    SettingsError, PluginError        start-up only, shown as they are

`str(error)` is one line, safe to show to the client: it names no secret, host or path.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence


class GatewayError(Exception):
    """The root. `code` is the machine-readable word that OpenAI's error object calls `code`."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequest(GatewayError):
    status = 400
    code = "invalid_request"


class BodyTooLarge(BadRequest):
    status = 413
    code = "body_too_large"


class BodyTimeout(BadRequest):
    status = 408
    code = "body_timeout"


class Unauthenticated(GatewayError):
    status = 401
    code = "invalid_api_key"


class BudgetExceeded(GatewayError):
    status = 402
    code = "budget_exceeded"


class PermissionDenied(GatewayError):
    status = 403
    code = "permission_denied"


class NotFound(GatewayError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    status = 405
    code = "method_not_allowed"


class IdempotencyKeyInUse(GatewayError):
    status = 409
    code = "idempotency_key_in_use"


class AnswerNotKept(IdempotencyKeyInUse):
    code = "idempotency_answer_not_kept"


class IdempotencyKeyReused(GatewayError):
    status = 422
    code = "idempotency_key_reused"


class NotServed(GatewayError):
    status = 501
    code = "not_served"


class RateLimited(GatewayError):
    status = 429
    code = "rate_limit_exceeded"


AWAY_S = 2.0
"""When to ask again while the database does not answer, whoever of us noticed it."""


class StoreUnavailable(GatewayError):
    status = 503
    code = "store_unavailable"


class NoDeploymentAvailable(GatewayError):
    status = 503
    code = "no_deployment_available"


class Draining(GatewayError):
    status = 503
    code = "draining"


class SwitchedOff(GatewayError):
    status = 503
    code = "switched_off"


class SettleFailed(GatewayError):
    status = 500
    code = "settle_failed"


class Cancelled(GatewayError):
    """Nobody's failure: the call was given up from outside while an attempt was under way."""

    status = 499
    code = "cancelled"


class Blame(enum.Enum):
    """What an upstream's failure means for the deployment and the credential that were used."""

    NOBODY = "nobody"
    CLIENT = "client"  # the caller's own mistake: relay the upstream's answer as it is
    DEPLOYMENT_AT_ONCE = "deployment_at_once"  # unreachable: cools now
    DEPLOYMENT = "deployment"  # counts towards cooling
    CREDENTIAL_INVALID = "credential_invalid"  # quarantine
    CREDENTIAL_SPENT = "credential_spent"  # cool it for every model
    CREDENTIAL_MODEL = "credential_model"  # cool it for this model


class UpstreamError(GatewayError):
    """An attempt that gave no answer for the client. `retryable`: another deployment may be tried."""

    status = 502
    code = "upstream_error"
    blame = Blame.DEPLOYMENT
    retryable = True


class UpstreamUnreachable(UpstreamError):
    code = "upstream_unreachable"
    blame = Blame.DEPLOYMENT_AT_ONCE


class UpstreamTimeout(UpstreamError):
    """`phase` is "first_byte", "idle" or "total": which deadline passed."""

    status = 504
    code = "upstream_timeout"

    def __init__(self, message: str, *, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


class UpstreamProtocolError(UpstreamError):
    code = "upstream_protocol_error"


class UpstreamInterrupted(UpstreamError):
    code = "upstream_interrupted"


class AgentLost(UpstreamError):
    """The agent's connection was lost, or could not be reached: it may be back in a moment. Nobody's failure, unless the agent `hung_up` on a request."""

    code = "agent_lost"
    blame = Blame.NOBODY

    def __init__(self, message: str, *, hung_up: bool = False) -> None:
        super().__init__(message)
        if hung_up:
            self.blame = Blame.DEPLOYMENT


class AgentFailed(UpstreamError):
    """An agent said, or showed, that it cannot answer. `cause` is one of docs/agents.md; `detail`: what it had sent, where an old client is to see it."""

    code = "agent_failed"

    def __init__(self, message: str, *, cause: str, detail: object = None) -> None:
        super().__init__(message, code=f"agent_{cause}")
        self.cause, self.detail = cause, detail
        self.blame = Blame.NOBODY if cause in ("busy", "ping_failed", "unknown_request") else Blame.DEPLOYMENT


INVALID_KEY_CODES = frozenset({"invalid_api_key", "account_deactivated", "incorrect_api_key_provided"})
"""The codes by which OpenAI and its imitators say, with a 401, that the key itself is bad."""

SPENT_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


class UpstreamRefused(UpstreamError):
    """The upstream answered with an error status, or with an error object where content should be.

    `headers` (lower-case names) and `body` are what it sent, for a verbatim relay of a client's own
    mistake; `upstream_code` is the `code` (or `type`) of its error object; `reset_s` the seconds it asked us to wait.
    """

    code = "upstream_refused"

    def __init__(self, status: int, headers: Sequence[tuple[str, str]], body: bytes, *, upstream_code: str | None = None, reset_s: float | None = None) -> None:
        super().__init__(f"The upstream answered with status {status}.")
        self.upstream_status = status
        self.headers = tuple(headers)
        self.body = body
        self.upstream_code = upstream_code
        self.reset_s = reset_s
        self.blame = blame_for_status(status, upstream_code)
        self.retryable = self.blame is not Blame.CLIENT


def blame_for_status(status: int, upstream_code: str | None) -> Blame:
    """The one table from an upstream's status to what it costs whom."""
    if status == 401:
        return Blame.CREDENTIAL_INVALID if upstream_code in INVALID_KEY_CODES else Blame.NOBODY
    if status == 402 or upstream_code in SPENT_CODES:
        return Blame.CREDENTIAL_SPENT
    if status in (403, 429):
        return Blame.CREDENTIAL_MODEL
    if 400 <= status < 500:
        return Blame.CLIENT
    return Blame.DEPLOYMENT


def error_type(status: int) -> str:
    """OpenAI's `type` for a status."""
    names = {400: "invalid_request_error", 401: "invalid_request_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error"}
    return names.get(status, "invalid_request_error" if status < 500 else "server_error")


class SettingsError(Exception):
    """Every problem of the settings at once, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class PluginError(Exception):
    """A backend or policy that cannot be found or loaded; the message says what to do."""
