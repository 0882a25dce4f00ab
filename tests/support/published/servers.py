"""Published servers as an admin would deploy them, and what agents do with each: calls whose answers show an effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PAGE = "<title>Lighthouse</title><h1>Lighthouse</h1><p>It blinks.</p>"
"""What the page says that `fetch` is asked for."""

_DATA: dict[str, Any] = {"volumes": [{"name": "data", "mountPath": "/data"}]}
_NO_NETWORK: dict[str, Any] = {"security": {"egress": "None"}}
_GIT = "; ".join(
    (
        "set -e",
        "cd /data",
        "test -d repo || { rm -rf new && git init --quiet new && cd new && echo first > notes.txt && git add notes.txt"
        " && git commit --quiet --message Begin && echo second >> notes.txt && mv ../new ../repo",
        "}",
        "exec /app/server --repository /data/repo",
    )
)
"""The server wants a repository that is there: the first process makes one, with a change that nobody has committed."""


@dataclass(frozen=True, slots=True)
class Use:
    """One call, and what its answer says."""

    tool: str
    arguments: Mapping[str, Any]
    says: str = ""
    error: bool = False
    """Whether the tool itself says that it failed."""


@dataclass(frozen=True, slots=True)
class PublishedServer:
    """One MCPServer."""

    image: str
    """The name of the example."""
    spec: Mapping[str, Any]
    uses: Callable[[str, str], tuple[Use, ...]]
    """By a name of the client's own, and the URL of the page; the same name twice would meet its own traces."""


def _time(_client: str, _page: str) -> tuple[Use, ...]:
    zones = {"source_timezone": "Asia/Tokyo", "target_timezone": "Asia/Kolkata"}
    return (
        Use("convert_time", {**zones, "time": "12:30"}, "T09:00:00"),
        Use("convert_time", {**zones, "time": "12:30", "target_timezone": "Asia/Atlantis"}, error=True),
    )


def _git(client: str, _page: str) -> tuple[Use, ...]:
    repository = {"repo_path": "/data/repo"}
    return (
        Use("git_create_branch", {**repository, "branch_name": f"by-{client}"}, f"Created branch 'by-{client}'"),
        Use("git_branch", {**repository, "branch_type": "local"}, f"by-{client}"),
        Use("git_status", {"repo_path": "/tmp"}, error=True),
    )


def _fetch(_client: str, page: str) -> tuple[Use, ...]:
    return (Use("fetch", {"url": page}, "It blinks."), Use("fetch", {"url": f"{page}nothing"}, "404", error=True))


def _memory(client: str, _page: str) -> tuple[Use, ...]:
    entity = {"name": client, "entityType": "client", "observations": [f"{client} was here"]}
    return (
        Use("create_entities", {"entities": [entity]}, client),
        Use("search_nodes", {"query": client}, f"{client} was here"),
    )


def _filesystem(client: str, _page: str) -> tuple[Use, ...]:
    file, outside = f"/data/{client}.txt", "outside allowed directories"
    return (
        Use("write_file", {"path": file, "content": f"of {client}"}, "Successfully wrote"),
        Use("read_text_file", {"path": file}, f"of {client}"),
        Use("read_text_file", {"path": "/etc/passwd"}, outside, error=True),
        Use("read_text_file", {"path": "/data/../etc/passwd"}, outside, error=True),
        Use("write_file", {"path": "/tmp/note.txt", "content": "lost"}, outside, error=True),
    )


def _thinking(_client: str, _page: str) -> tuple[Use, ...]:
    return tuple(
        Use(
            "sequentialthinking",
            {"thought": "One by one", "thoughtNumber": n, "totalThoughts": 2, "nextThoughtNeeded": n < 2},
            # Of this session only, whoever thought before.
            f'"thoughtHistoryLength": {n}',
        )
        for n in (1, 2)
    )


def _everything(client: str, _page: str) -> tuple[Use, ...]:
    return (Use("echo", {"message": client}, client), Use("get-sum", {"a": 40, "b": 2}, "42"))


SERVERS: Mapping[str, PublishedServer] = {
    "time": PublishedServer("time", _NO_NETWORK, _time),
    "git": PublishedServer(
        "git",
        {
            **_NO_NETWORK,
            **_DATA,
            "command": ["sh", "-c", _GIT],
            "env": [
                {"name": f"GIT_{role}_{key}", "value": value}
                for role in ("AUTHOR", "COMMITTER")
                for key, value in (("NAME", "bot"), ("EMAIL", "bot@example.com"))
            ],
        },
        _git,
    ),
    # Its own guard is off: what it reaches is for the host to say.
    "fetch": PublishedServer("fetch", {"args": ["--allow-private-ips"], "security": {"egress": "All"}}, _fetch),
    "memory": PublishedServer(
        "memory",
        {**_NO_NETWORK, **_DATA, "env": [{"name": "MEMORY_FILE_PATH", "value": "/data/memory.jsonl"}]},
        _memory,
    ),
    "filesystem": PublishedServer("filesystem", {**_NO_NETWORK, **_DATA, "args": ["/data"]}, _filesystem),
    "sequential-thinking": PublishedServer("sequential-thinking", _NO_NETWORK, _thinking),
    "everything": PublishedServer("everything", {**_NO_NETWORK, "args": ["stdio"]}, _everything),
}
"""By the name of their MCPServer."""
