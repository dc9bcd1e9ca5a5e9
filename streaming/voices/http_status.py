"""Errors for the HTTP statuses of remote voices, of requests and of websocket handshakes."""

from __future__ import annotations

from streaming.errors import VoiceAuthError, VoiceError, VoiceQuotaError, VoiceUnreachableError

ERRORS: dict[int, tuple[type[VoiceError], str]] = {
    401: (VoiceAuthError, "check the API key and its environment variable"),
    403: (VoiceAuthError, "check what the API key may do"),
    402: (VoiceQuotaError, "check the account's balance"),
    429: (VoiceQuotaError, "wait, or raise the account's limits"),
}


def status_error(where: str, status: int, reason: str) -> VoiceError:
    """The error for a status other than success of the service at `where`, with the reason that the service gave."""
    other = (VoiceUnreachableError, "try again") if status >= 500 else (VoiceError, "check address, model and voice")
    kind, remedy = ERRORS.get(status, other)
    return kind(f"{where} answered {status} ({reason}); {remedy}")
