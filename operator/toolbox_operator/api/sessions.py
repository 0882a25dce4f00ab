"""Sessions of an MCPServer that speaks stdio: each has a container of its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toolbox_operator.api.meta import ApiModel, Duration, StatusModel


class Sessions(ApiModel):
    """How sessions of a stdio server are run; each has the resource limits for itself."""

    max_sessions: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many may be open at a time; 10 when absent."""
    idle_timeout: Duration | None = None
    """A session in which nothing was said for so long is ended, like 30m; 30m when absent. From 1s to 24h."""


class SessionsStatus(StatusModel):
    """Sessions as the host counts them."""

    open: int
    """How many are open; a change of this alone is shown at most once a minute."""
    max: int
    """How many may be."""
