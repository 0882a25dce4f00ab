"""What a repeated DELETE still has to wait for."""

from __future__ import annotations

from toolbox_dtma.policy.server import PolicyServer


class Revocations:
    """The policy revision that ended each object, until it is in force.

    An object this run knows nothing of may have been ended just before the restart, so it waits for the first
    revision: every worker of the run before must be accounted for.
    """

    def __init__(self, policy: PolicyServer):
        self._policy = policy
        self._first = policy.revision
        self._revisions: dict[str, int] = {}

    def ended(self, uid: str, revision: int) -> None:
        """`uid` ends with `revision`; what is in force by now is forgotten."""
        self._revisions = {u: r for u, r in self._revisions.items() if not self._policy.in_force(r, somewhere=False)}
        self._revisions[uid] = revision

    async def wait(self, uid: str) -> None:
        """Return once no worker acts on `uid` any more. Raises `AckPending`."""
        await self._policy.settled(self._revisions.get(uid, self._first), somewhere=False)
