"""Errors over HTTP: RFC 9457 problem documents with status codes, made from the exception tree."""

from __future__ import annotations

import json
import logging
import re
from http import HTTPStatus

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler

from engine.errors import (
    AvatarFileError,
    CapacityError,
    DeviceError,
    MediaError,
    PersonaStreamError,
    ProtocolError,
    SessionClosedError,
    UnknownAvatarError,
)
from streaming.errors import (
    AvatarExistsError,
    AvatarInUseError,
    FieldError,
    PublishError,
    QuotaError,
    StorageError,
    TooLargeError,
    VoiceError,
)

log = logging.getLogger(__name__)

STATUSES: tuple[tuple[type[PersonaStreamError], HTTPStatus], ...] = (
    (UnknownAvatarError, HTTPStatus.NOT_FOUND),
    (SessionClosedError, HTTPStatus.GONE),
    (QuotaError, HTTPStatus.TOO_MANY_REQUESTS),
    (StorageError, HTTPStatus.INSUFFICIENT_STORAGE),
    (CapacityError, HTTPStatus.SERVICE_UNAVAILABLE),
    (DeviceError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ProtocolError, HTTPStatus.BAD_REQUEST),
    (MediaError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (AvatarInUseError, HTTPStatus.CONFLICT),
    (AvatarExistsError, HTTPStatus.CONFLICT),
    (AvatarFileError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (TooLargeError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (PublishError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (VoiceError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (PersonaStreamError, HTTPStatus.INTERNAL_SERVER_ERROR),
)


def status_of(error: PersonaStreamError) -> HTTPStatus:
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def problem(
    status: int, code: str, detail: str, headers: dict[str, str] | None = None, field: str | None = None
) -> web.Response:
    """One problem document. `code` is stable and meant for programs, `detail` for people; `field`: of a form."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
    body |= {"field": field} if field else {}
    return web.Response(
        status=status, body=json.dumps(body).encode(), content_type="application/problem+json", headers=headers
    )


class ClientFaults(logging.Filter):
    """Drops what aiohttp logs, with a traceback, of requests that clients write wrong: they are answered with 400."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, web.RequestPayloadError | HttpProcessingError)


def connection_log() -> logging.Logger:
    """The log of faults below the routes, for aiohttp."""
    connections = logging.getLogger(f"{__name__}.connections")
    connections.addFilter(ClientFaults())
    return connections


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every exception of a route into a problem document."""
    try:
        return await handler(request)
    except web.HTTPRedirection:
        raise
    except web.HTTPException as error:
        # aiohttp's class name, not the phrase: phrases change between versions of Python
        code = re.sub("(?<=[a-z])(?=[A-Z])", "-", type(error).__name__.removeprefix("HTTP")).lower()
        kept = {name: error.headers[name] for name in ("Allow", "WWW-Authenticate") if name in error.headers}
        return problem(error.status, code, error.text or error.reason, kept)
    except web.RequestPayloadError as error:
        detail = " ".join(str(error).split())
        return problem(
            400, ProtocolError.code, f"the body cannot be read ({detail}); expected what the headers say of it"
        )
    except UnicodeEncodeError as error:  # aiohttp keeps them as surrogates, which no answer can hold
        return problem(400, ProtocolError.code, f"a header has bytes that are not UTF-8 ({error.reason})")
    except PersonaStreamError as error:
        cause, field = (error.cause, error.field) if isinstance(error, FieldError) else (error, None)
        headers = {"Retry-After": str(cause.retry_after_s)} if isinstance(cause, CapacityError) else None
        return problem(status_of(cause), cause.code, str(cause), headers, field)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return problem(500, "internal", "the server failed while it answered; its log has the reason")
