"""The FastAPI application of the management API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from toolbox_dtma import __version__
from toolbox_dtma.management import routes
from toolbox_dtma.management.gate import Gate
from toolbox_dtma.management.problems import MEDIA_TYPE, Refused, problem_response, unexpected
from toolbox_dtma.management.service import Service
from toolbox_dtma.wire import EPOCH_HEADER, OWNER_HEADER, ProblemCode

_BY_STATUS = {
    404: ProblemCode.NOT_FOUND,
    405: ProblemCode.METHOD_NOT_ALLOWED,
    413: ProblemCode.TOO_LARGE,
}


def make_app(service: Service, *, token: str) -> ASGIApp:
    """The whole API behind its gate. `token` is the one bearer token."""
    app = FastAPI(
        title="DTMA management API",
        version=__version__,
        openapi_url="/v2/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(routes.router)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    # Only the answer: the framework raises it again, and the gate logs it.
    app.add_exception_handler(Exception, _internal)
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        return _document(generate())

    app.openapi = openapi
    return Gate(app, token=token, body_bytes=service.bounds.body_bytes, metrics=service.metrics)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return problem_response(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = cast("list[Mapping[str, Any]]", error.errors())
    for problem in problems:
        place = [str(part).lower() for part in problem["loc"]]
        if problem["type"] == "missing" and place == ["header", OWNER_HEADER.lower()]:
            return problem_response(Refused(ProblemCode.OWNER_MISSING))
        if problem["type"] == "missing" and place == ["header", EPOCH_HEADER.lower()]:
            return problem_response(Refused(ProblemCode.EPOCH_MISSING))
    # Never the input: a rejected value may be a secret.
    shown = (f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in problems[:8])
    return problem_response(Refused(ProblemCode.INVALID, "; ".join(shown)))


async def _internal(_request: Request, error: Exception) -> Response:
    return problem_response(unexpected(error))


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = problem_response(Refused(_BY_STATUS.get(error.status_code, ProblemCode.INVALID), error.detail))
    response.headers.update(error.headers or {})
    return response


def _document(schema: dict[str, Any]) -> dict[str, Any]:
    """Say in the generated schema what the framework cannot know: the media type of errors, and the token."""
    schema["components"].setdefault("securitySchemes", {})["bearer"] = {"type": "http", "scheme": "bearer"}
    schema["security"] = [{"bearer": []}]
    for path in schema["paths"].values():
        for operation in path.values():
            content = operation["responses"]["default"]["content"]
            for media_type in [name for name in content if name != MEDIA_TYPE]:
                content[MEDIA_TYPE] = content.pop(media_type)
    return schema
