"""What the HTTP status of a remote voice means, for its requests and its websocket handshakes."""

from __future__ import annotations

from streaming.errors import VoiceAuthError, VoiceError, VoiceQuotaError, VoiceUnreachableError

REFUSALS: dict[int, tuple[type[VoiceError], str]] = {
    401: (VoiceAuthError, "check the API key and its environment variable"),
    403: (VoiceAuthError, "check what the API key may do"),
    402: (VoiceQuotaError, "check the account's balance"),
    429: (VoiceQuotaError, "wait, or raise the account's limits"),
}


def refusal(where: str, status: int, said: str) -> VoiceError:
    """The error for a status that is no success; `said` is what the service gave as its reason."""
    other = (VoiceUnreachableError, "try again") if status >= 500 else (VoiceError, "check address, model and voice")
    kind, remedy = REFUSALS.get(status, other)
    return kind(f"{where} answered {status} ({said}); {remedy}")
