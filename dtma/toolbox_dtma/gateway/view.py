"""What a connection sees of an instance: names of tools and prompts, URIs of resources (design §3, §6). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from toolbox_dtma.link.messages import Surface
from toolbox_dtma.wire import Expose, NameFilter, allowed_by_all

_PLAIN_URI = re.compile(r"[a-z][a-z0-9+.-]*:(?=[!-~])(?://)?([!-~]*)")
"""Printable ASCII with a scheme in lower case."""
_READ_DIFFERENTLY = re.compile(r"[%\\]|//|(?:^|/)\.{1,2}(?:[/?#]|$)")
"""What servers decode or resolve, each in its own way, before they look a resource up."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one kind."""

    filters: tuple[NameFilter, ...]
    listed: frozenset[str] | None
    """Names of the last probe; None while they are not known."""
    restricted: bool
    """Whether anything is hidden by the form of the filters, not by what they happen to match."""

    @classmethod
    def of(cls, filters: tuple[NameFilter, ...], listed: Iterable[str] | None) -> Names:
        """With `restricted` worked out."""
        known = None if listed is None else frozenset(listed)
        return cls(filters, known, not all(each.unrestricted for each in filters))

    def allow(self, name: object) -> bool:
        """Whether a name may be called. A restricted one must also be one of those listed, byte for byte."""
        if not self.restricted:
            return True
        return isinstance(name, str) and self.listed is not None and name in self.listed and self.exposes(name)

    def allow_uri(self, uri: object) -> bool:
        """Whether a resource may be read, which need not be listed: templates stand for any number of them.

        A restricted one that is not listed needs filters that only allow, and no part that a server could read as
        another resource: a name that was denied has many spellings.
        """
        if not self.restricted or self.allow(uri):
            return True
        if not isinstance(uri, str) or any(each.deny for each in self.filters):
            return False
        plain = _PLAIN_URI.fullmatch(uri)
        return plain is not None and not _READ_DIFFERENTLY.search(plain[1]) and self.exposes(uri)

    def exposes(self, name: str) -> bool:
        """Whether every filter allows the name, probed or not: what a list may show."""
        return allowed_by_all(self.filters, name)


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a connection sees of an instance."""

    tools: Names
    prompts: Names
    resources: Names
    """By URI; templates by their `uriTemplate`."""
    restricted: bool
    approved: frozenset[str] | None = None
    """Hashes of the definitions of tools that may be seen; None where tools are not pinned."""

    @classmethod
    def of(
        cls,
        exposes: tuple[Expose, ...],
        surface: Surface | None,
        approvals: Mapping[str, tuple[int, ...]] | None = None,
    ) -> View:
        """Several `expose` together, none of which can widen another."""
        tools = Names.of(tuple(each.tools for each in exposes), surface.tools if surface else None)
        pins = {each.approved_hash for each in exposes if each.approved_hash is not None}
        approved: dict[str, str] | None = None
        if pins:
            approved = _approved(pins, surface or Surface(), approvals or {})
            tools = Names(tools.filters, frozenset(approved.values()), restricted=True)
        prompts = Names.of(tuple(each.prompts for each in exposes), surface.prompts if surface else None)
        resources = Names.of(tuple(each.resources for each in exposes), surface.resources if surface else None)
        restricted = tools.restricted or prompts.restricted or resources.restricted
        return cls(tools, prompts, resources, restricted, None if approved is None else frozenset(approved))


def _approved(pins: Iterable[str], surface: Surface, approvals: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Names by the hash of the definition, of the last probe's tools that every pin approves.

    A name under which the server shows something else as well is left out: which of them a call would get, only the
    server knows.
    """
    shown = tuple(zip_longest(surface.tools, surface.hashes[: len(surface.tools)], fillvalue=""))
    places = [frozenset(approvals.get(pin, ())) for pin in pins]
    other = {name for at, (name, hash_) in enumerate(shown) if not hash_ or not all(at in each for each in places)}
    return {hash_: name for name, hash_ in shown if name not in other}
