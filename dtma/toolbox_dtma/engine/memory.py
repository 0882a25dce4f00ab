"""What the loop of one instance remembers between two looks; what must outlive DTMA goes through the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from toolbox_dtma.engine.images import Reference
from toolbox_dtma.engine.ledger import Ledger, Pulled
from toolbox_dtma.engine.models import Container
from toolbox_dtma.engine.plan import Candidate
from toolbox_dtma.engine.restart import RestartState, after_exit, after_start
from toolbox_dtma.engine.timings import Timings
from toolbox_dtma.wire import DesiredInstance, InstanceState


class Memory:
    """Restart counts, intended stops, and which image a reference means."""

    def __init__(self, instance_id: str, ledger: Ledger) -> None:
        self._id = instance_id
        self._ledger = ledger
        record = ledger.get(instance_id)
        self._restart = RestartState(record.container_id, record.restarts, record.delay, record.exit_seen)
        self._image: tuple[DesiredInstance, str] | None = None

    @property
    def stopped_by_us(self) -> str | None:
        """Incarnation seen at rest while it was meant to rest."""
        return self._ledger.get(self._id).rested or None

    @property
    def restart_at(self) -> float:
        """Monotonic time before which the exited container is left alone."""
        return self._restart.not_before

    def restarts(self, container_id: str) -> int:
        """Restarts of a container since it was created."""
        return self._restart.restarts if self._restart.container_id == container_id else 0

    def count(
        self,
        state: InstanceState,
        candidates: Sequence[Candidate],
        now: float,
        timings: Timings,
        *,
        witnessed: bool = True,
    ) -> None:
        """Take note of containers at rest: meant to, or after an exit that has to wait for its restart."""
        for item in candidates:
            container = item.container
            if container.state.status != "exited":
                continue
            if state is InstanceState.STOPPED:
                self._put(rested=container.incarnation)
            elif item.same_spec and container.incarnation != self.stopped_by_us:
                self._keep(
                    after_exit(
                        self._restart,
                        container_id=container.id,
                        incarnation=container.incarnation,
                        uptime=container.uptime,
                        now=now,
                        timings=timings,
                        witnessed=witnessed,
                    )
                )

    def restarted(self, container: Container) -> None:
        """A container that had exited was started again."""
        self._keep(after_start(self._restart, container.id))

    def image(self, desired: DesiredInstance, reference: Reference, candidates: Sequence[Candidate]) -> str | None:
        """Image id that the desired reference means, if that is settled."""
        if self._image is not None and same_request(self._image[0], desired, reference):
            return self._image[1]
        if not reference.floating:
            return None
        pulled = self._ledger.get(self._id).pulled
        if pulled is not None:
            same = (pulled.uid, pulled.generation, pulled.image) == (desired.uid, desired.generation, desired.image)
            return pulled.image_id if same else None
        # Nothing is remembered (the runtime folder was lost): what is there is what this generation meant.
        adopted = next((item.container.image for item in candidates if item.same_spec), None)
        if adopted is not None:
            self.remember_image(desired, reference, adopted)
        return adopted

    def remember_image(self, desired: DesiredInstance, reference: Reference, image_id: str) -> None:
        """The reference was resolved for this generation."""
        self._image = (desired, image_id)
        if reference.floating:
            uid, generation = desired.uid, desired.generation
            self._put(pulled=Pulled(uid=uid, generation=generation, image=desired.image, image_id=image_id))

    def forget_image(self) -> None:
        """The image isn't there any more."""
        self._image = None
        self._put(pulled=None)

    def forget(self) -> None:
        """The instance was removed."""
        self._ledger.forget(self._id)
        self._image, self._restart = None, RestartState()

    def _put(self, **changes: Pulled | str | float | None) -> None:
        self._ledger.put(self._id, self._ledger.get(self._id).model_copy(update=changes))

    def _keep(self, state: RestartState) -> None:
        if state == self._restart:
            return
        self._restart = state
        self._put(
            container_id=state.container_id, restarts=state.restarts, delay=state.delay, exit_seen=state.exit_seen
        )


def same_request(earlier: DesiredInstance, desired: DesiredInstance, reference: Reference) -> bool:
    """Whether what the earlier one's image was resolved to holds for the later one."""
    if earlier.image != desired.image:
        return False
    return not reference.floating or (earlier.uid, earlier.generation) == (desired.uid, desired.generation)
