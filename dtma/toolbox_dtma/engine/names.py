"""Names and labels of everything DTMA makes on a host. Each has one constructor, and derives from the hostId.

>>> HostNames("7c5e4d6a-0f3b-4a53-9a43-0c1f9a5f8f11").bridge_prefix
'mtb669c1e'
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from toolbox_dtma.engine.api import Holder
from toolbox_dtma.wire import Egress

LABEL_HOST = "magictoolbox.dev/host"
"""The hostId. Nothing without it, with this host's value, is ever written to."""

LABEL_INSTANCE = "magictoolbox.dev/instance"
LABEL_OWNER = "magictoolbox.dev/owner"
LABEL_SPEC_HASH = "magictoolbox.dev/spec-hash"
LABEL_UID = "magictoolbox.dev/uid"
LABEL_GENERATION = "magictoolbox.dev/generation"
"""Generation the container was created for; later generations may keep the container."""

LABEL_SESSION = "magictoolbox.dev/session"
"""On the container of one session of a stdio server: the session's name. No other container has it."""
LABEL_NAMESPACE = "magictoolbox.dev/namespace"
LABEL_NAME = "magictoolbox.dev/name"
LABEL_VOLUME = "magictoolbox.dev/volume"
"""On volumes: their name within the instance."""

LABEL_HELPER = "magictoolbox.dev/helper-of"
"""On containers that are never started, instead of `LABEL_INSTANCE`: the instance they do something for."""

LABEL_POOL = "magictoolbox.dev/pool"
"""On networks: the address pool this host chose, read back after a restart."""

ANY_BRIDGE = "mtb+"
"""Every bridge of every host on this machine, as iptables writes an interface prefix."""

_MARKS = {Egress.INTERNET: "", Egress.ALL: "p", Egress.NONE: "n"}
"""What a bridge's name has between its host's prefix and its index. No hexadecimal digits: a prefix names one kind."""


@dataclass(frozen=True)
class HostNames:
    """Names that belong to one hostId, so that several hosts can share a machine."""

    host_id: str

    @cached_property
    def tag(self) -> str:
        """Six hex digits that stand for the host where space is short."""
        return hashlib.sha256(self.host_id.encode()).hexdigest()[:6]

    @property
    def bridge_prefix(self) -> str:
        """What every bridge interface of this host begins with."""
        return f"mtb{self.tag}"

    def bridge(self, index: int, egress: Egress) -> str:
        """Interface name (at most 15 characters) of the network that uses subnet `index` of the pool."""
        return f"{self.bridge_prefix}{_MARKS[egress]}{index:03x}"

    def is_bridge(self, name: str, egress: Egress) -> bool:
        """Whether a bridge has a name that this host gives to networks of this kind."""
        return re.fullmatch(f"{self.bridge_prefix}{_MARKS[egress]}[0-9a-f]{{3}}", name) is not None

    def bridges(self, egress: Egress) -> str:
        """All bridges of a kind, as iptables writes an interface prefix; of `INTERNET`, those of all kinds."""
        return f"{self.bridge_prefix}{_MARKS[egress]}+"

    @property
    def input_chain(self) -> str:
        """Chain that guards the host itself."""
        return f"MTB-{self.tag}-IN"

    @property
    def forward_chain(self) -> str:
        """Chain that guards everything behind the host."""
        return f"MTB-{self.tag}-FWD"

    def network(self, instance_id: str, egress: Egress) -> str:
        """Name of an instance's network; during a change of egress it has one of each kind."""
        kind = "" if egress is Egress.INTERNET else f"-{egress.lower()}"
        return f"mtb-{self.tag}-{instance_id}{kind}"

    def container(self, instance_id: str, name: str, spec_hash: str, image_id: str) -> str:
        """Name of the container of an instance with this spec and image; never the bare name of the object.

        Old and new container of a replacement exist side by side for a moment, so the suffix covers what tells
        them apart.
        """
        unique = hashlib.sha256("\0".join((self.host_id, instance_id, spec_hash, image_id)).encode()).hexdigest()[:8]
        short_id = re.sub(r"[^a-z0-9]", "", instance_id.lower())[:8]
        return f"mtb-{name[:30].rstrip('-')}-{short_id}-{unique}"

    def session_container(self, instance_id: str, name: str, session: str) -> str:
        """Name of the container of one session."""
        unique = hashlib.sha256("\0".join((self.host_id, instance_id, session)).encode()).hexdigest()[:16]
        short_id = re.sub(r"[^a-z0-9]", "", instance_id.lower())[:8]
        return f"mtb-{name[:22].rstrip('-')}-{short_id}-s{unique}"

    def labels(self, instance_id: str) -> dict[str, str]:
        """Labels that make something ours."""
        return {LABEL_HOST: self.host_id, LABEL_INSTANCE: instance_id}

    @property
    def volume_prefix(self) -> str:
        """What the name of every volume of this host begins with."""
        return f"mtb-{self.tag}-"

    def volume(self, holder: Holder, name: str) -> str:
        """Name of a holder's volume; never the same for two."""
        whose = (self.host_id, holder.owner, holder.namespace, holder.name, holder.instance, name)
        unique = hashlib.sha256("\0".join(whose).encode()).hexdigest()[:32]
        return f"{self.volume_prefix}{holder.name[:30]}-{name[:30]}-{unique}"

    def volume_labels(self, holder: Holder) -> dict[str, str]:
        """Labels that every volume of a holder has, and no other."""
        return self.labels(holder.instance) | {
            LABEL_OWNER: holder.owner,
            LABEL_NAMESPACE: holder.namespace,
            LABEL_NAME: holder.name,
        }

    def helper(self, instance_id: str) -> str:
        """Name of the container that is made, and never started, to reach into an instance's volumes."""
        return f"mtb-{self.tag}-helper-{instance_id}"
