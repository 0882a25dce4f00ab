"""Timings and bounds of DTMA; everything in seconds unless said otherwise. Tests use shorter ones."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0)]


class Timings(BaseModel):
    """Every duration that shapes behaviour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probe_first_retry: Seconds = 0.05
    """First pause between probes of a container that is still starting; grows up to `probe_start_interval`."""
    probe_retry_growth: Annotated[float, Field(ge=1)] = 1.25
    """From one pause to the next: what a server may lose by it is a quarter of the time that it takes to start."""
    probe_start_interval: Seconds = 1.0
    probe_start_deadline: Seconds = 60.0
    """After this long without a conversation a container is Error; probing goes on."""
    probe_error_interval: Seconds = 5.0
    probe_interval: Seconds = 30.0
    probe_failures: Annotated[int, Field(ge=1)] = 3
    """Consecutive failures that make a ready instance Error."""
    probe_timeout: Seconds = 10.0
    """The whole MCP conversation of one probe."""
    probe_concurrency: Annotated[int, Field(ge=1)] = 8
    """Of servers that stand; and as many of servers on stdio."""

    probe_session_start: Seconds = 45.0
    """What the process of a stdio server may take beyond `probe_timeout`, since it is started for the probe: until its
    first answer, and until that of another process which is needed for the handshake. With `probe_timeout` less than
    `probe_start_deadline`, so that a failure is told as what it is.
    """

    probe_session_interval: Seconds = 600.0
    """Between probes of a stdio server, each of which takes a container of its own."""
    probe_session_retry: Seconds = 1.0
    """First pause after one that failed; doubles up to `probe_session_retry_max`."""
    probe_session_retry_max: Seconds = 60.0

    broker_start: Seconds = 30.0
    """How long a session broker may take until it is ready."""
    broker_end: Seconds = 2.0
    """How long one that DTMA has hung up on may take to end before it is killed."""
    broker_ask: Seconds = 5.0
    """Between questions to the session broker whether it still serves."""
    broker_unanswered: Annotated[int, Field(ge=1)] = 3
    """One that has left so many unanswered, and said nothing else, hangs: it is killed, and started again."""
    broker_retry_first: Seconds = 0.5
    """Pause before a session broker that ended is started again; doubles up to `broker_retry_max`."""
    broker_retry_max: Seconds = 30.0
    broker_patience: Seconds = 10.0
    """Without a session broker for longer than this, servers that need it count as failing."""
    session_open: Seconds = 55.0
    """How long a session's container may take until it runs; the broker waits 60 s."""
    session_grace: Annotated[int, Field(ge=0)] = 2
    """What a process whose client has gone gets to end by itself."""
    session_last_words: Seconds = 1.0
    """How long after a process's end its session is kept, for the broker to read what it still wrote."""
    sessions_told: Seconds = 10.0
    """Between reports of which only the number of sessions is news."""
    spare_after: Seconds = 2.0
    """How long after a process that somebody waited for was made a spare is begun: it is starting up itself."""
    spare_retry_first: Seconds = 1.0
    """Pause after a spare that ended unused; doubles up to `spare_retry_max`."""
    spare_retry_max: Seconds = 300.0

    ack_deadline: Seconds = 5.0
    """How long a call waits for the workers before it answers AckPending."""
    silence: Seconds = 0.3
    """A worker that owes the acknowledgement of a withdrawal and says nothing for this long is killed."""
    patient_silence: Seconds = 5.0
    """The same where nothing is withdrawn, and for a worker that is still loading its first snapshot."""
    hung: Seconds = 15.0
    """A worker of which nothing is due and that says nothing for this long, although asked, is killed: connections
    that the kernel hands to it would wait for ever."""
    gateway_away: Seconds = 3.0
    """After this long without any worker the gateway counts as down; one that is replaced is back before that."""
    worker_lost: Seconds = 31.0
    """After this long a worker without a socket counts as refusing everything: its own 30 s, and a margin."""
    hello_deadline: Seconds = 5.0

    key_lifetime: Seconds = 86_400.0
    """How long one key signs session ids."""
    key_kept: Seconds = 7 * 86_400.0
    """How long it verifies them after that: a session older than this has to begin anew."""
    key_retry: Seconds = 60.0
    """Pause after a key ring that could not be written."""

    certificate_poll: Seconds = 5.0
    """Between looks at the certificate's files; a renewal is in use after at most two."""
    heartbeat: Seconds = 10.0
    request_head: Seconds = 10.0
    """How long a connection to the management API may take from its start, or the first byte, to a whole head."""
    first_sight: Seconds = 3.0
    """How long the start waits for the engine to show what runs, before workers and callers are served."""
    removal_wait: Seconds = 30.0
    """How long a DELETE waits for the container to be gone."""
    removal_retry: Seconds = 2.0
    log_follow: Seconds = 3600.0
    graceful_stop: Annotated[int, Field(ge=1)] = 5


class Bounds(BaseModel):
    """Every size limit of the management API."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: int = 1024 * 1024
    event_count: int = 10_000
    event_bytes: int = 16 * 1024 * 1024
    log_bytes: int = 4 * 1024 * 1024
    """Most bytes of one answer that does not follow."""
    surface_bytes: int = 512 * 1024
    calls_bytes: int = 64 * 1024 * 1024
    """Call records on disk; beyond it the oldest are dropped, some 150,000 records later."""
    calls_segment_bytes: int = 1024 * 1024
    """One file of them, which is removed as a whole."""
    calls_batch: int = 500
    """Most call records of one answer."""
    worker_backlog_bytes: int = 64 * 1024 * 1024
    """A worker that has this much unread is disconnected and gets a snapshot when it comes back."""
