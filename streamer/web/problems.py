"""Errors of the HTTP API as problem details (RFC 9457), one sentence each, without addresses of this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from detectors import DetectorError
from sinks.address import redact
from sinks.sink import SinkError
from streamer.errors import StreamerError
from trackers import TrackerError

log = logging.getLogger("groundstream")

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """The body of every error answer."""

    type: str = Field("about:blank", description="Always about:blank: the status says which kind of problem it is.")
    title: str = Field(description="The standard phrase of the status.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="One sentence: what was found, what is expected, how to fix it.")
    current: Any = Field(None, description="With status 412: the value that is in force now.")
    etag: str | None = Field(None, description="With status 412: its entity tag.")


class Problem(Exception):
    """An error answer with its sentence; `extra` adds members to the body."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


def problem_response(
    status: int, detail: str, headers: Mapping[str, str] | None = None, extra: Mapping[str, Any] | None = None
) -> Response:
    """Returns the error answer with secrets in addresses hidden."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": redact(detail),
        **(extra or {}),
    }
    return JSONResponse(body, status, {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE)


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI description of error answers with these statuses."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": _REFERENCE}}}
        for status in statuses
    }


_REFERENCE = {"$ref": "#/components/schemas/ProblemDetails"}


def handle_problems(app: FastAPI) -> None:
    """Lets `app` answer every error with problem details."""

    @app.exception_handler(Problem)
    async def _problem(_: Request, error: Problem) -> Response:
        return problem_response(error.status, error.detail, error.headers, error.extra)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        details = {404: "nothing is served at this address", 405: "this address does not support the method"}
        return problem_response(
            error.status_code, details.get(error.status_code, str(error.detail)), dict(error.headers or {})
        )

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        return problem_response(422, validation_sentence(error.errors()))

    for kind in (StreamerError, DetectorError, SinkError, TrackerError):

        @app.exception_handler(kind)
        async def _expected(_: Request, error: Exception) -> Response:
            return problem_response(422 if isinstance(error, ValueError) else 503, str(error))

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> Response:
        log.error("the web server failed to answer a request", exc_info=error)
        return problem_response(500, "the server failed to answer: its log has the cause")


def validation_sentence(mistakes: Any) -> str:
    """Returns one sentence for each mistake that pydantic found, at most three."""
    sentences = []
    for mistake in list(mistakes)[:3]:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"]).lstrip(".")
        message = mistake["msg"].removeprefix("Value error, ")
        value = repr(mistake.get("input"))[:80]
        given = "" if mistake["type"] in {"missing", "json_invalid"} else f" is {value}"
        sentences.append(f"{place}{given}: {message[:1].lower()}{message[1:]}")
    return "; ".join(sentences) or "the request is not valid"
