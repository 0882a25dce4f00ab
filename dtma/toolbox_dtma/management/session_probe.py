"""The probe of a bridged server: in a session of its own, for which DTMA starts a process if it speaks stdio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from toolbox_dtma.engine.api import EngineUnavailable, NotDeployed, SessionExit
from toolbox_dtma.engine.failures import Failure as EngineFailure
from toolbox_dtma.engine.failures import bounded
from toolbox_dtma.readiness import Failure, Probed
from toolbox_dtma.sessions.manager import SessionManager
from toolbox_dtma.sessions.trials import BrokerAway
from toolbox_dtma.wire import InstanceReason

EXIT_SECONDS = 0.5
"""What Docker gets to tell of an exit, after a conversation that failed."""
SILENT_EXIT_SECONDS = 5.0
"""The same where the process has closed its output."""
_EXEC_FAILED = frozenset({126, 127})

Ask = Callable[[str, str], Awaitable[Probed | Failure]]
"""Holds the conversation, over a socket and with a ticket. Raises `NotRun`."""


class NotRun(Exception):
    """Nothing could be found out; says nothing about the instance."""


async def probe_session(sessions: SessionManager, instance_id: str, ask: Ask) -> Probed | Failure:
    """Have a server talked to, in a new session. Raises `NotRun`."""
    try:
        async with sessions.trial(instance_id) as trial:
            result = await ask(sessions.socket_path, trial.ticket)
            if isinstance(result, Probed):
                return result
            patience = SILENT_EXIT_SECONDS if trial.silent else EXIT_SECONDS
            exit_ = await trial.how_it_ended(patience)
            if trial.unreachable:
                return Failure(InstanceReason.PORT_NOT_LISTENING, result.message)
            return explained(result, exit_)
    except EngineFailure as failure:
        return Failure(failure.reason, failure.message)
    except BrokerAway as away:
        if away.lately:
            raise NotRun(str(away)) from away
        message = "The host's session broker does not run; the log of toolbox-dtma on the host says why."
        return Failure(InstanceReason.PROBE_FAILED, message)
    except (EngineUnavailable, NotDeployed, TimeoutError) as error:
        raise NotRun(str(error) or "its container took too long to start") from error


def explained(failure: Failure, exit_: SessionExit | None) -> Failure:
    """Why a conversation failed, if its process has ended by itself."""
    if exit_ is None:
        return failure
    if exit_.out_of_memory:
        message = "The process used more memory than its limit and was killed. Raise spec.resources.limits.memory."
        return Failure(InstanceReason.OUT_OF_MEMORY, message)
    if exit_.code in _EXEC_FAILED:
        message = f"The command cannot be executed in this image; check spec.command and spec.image: {failure.message}"
        return Failure(InstanceReason.START_FAILED, bounded(message))
    code = "" if exit_.code is None else f" with code {exit_.code}"
    message = f"The process exited{code} before it had answered: {failure.message}"
    return Failure(InstanceReason.CONTAINER_EXITED, bounded(message))
