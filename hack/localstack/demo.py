"""`make demo`: the whole system on this machine, one tool call through it, and then it is yours until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from localstack import agent, postgres, quickstart, stack
from localstack.prepare import interrupt
from localstack.processes import Supervisor
from localstack.progress import SetupError, say
from localstack.stack import LocalStack

READY_SECONDS = 120
MESSAGE = "Hello from the other side of the gateway"


@dataclass(slots=True)
class Story:
    """What happened, line by line, with the seconds since the objects were applied."""

    begin: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list[str])

    def tell(self, text: str) -> None:
        """Adds a line, and shows it at once."""
        self.lines.append(f"{time.monotonic() - self.begin:5.1f}s  {text}")
        say(text)


def tell_ready(story: Story, running: LocalStack, target: quickstart.Target) -> None:
    """Waits for one object and tells what became of it."""
    cluster = running.parts.cluster
    status = quickstart.wait_ready(cluster, target, READY_SECONDS)["status"]
    match target.kind:
        case "Toolbox":
            about = status.get("agent", {})
            told = f"the host answers (DTMA {about.get('version')}, Docker {about.get('engine')})"
        case "MCPServer":
            image = running.images.get(target.name, "its image")
            told = f"{image} was pulled and runs; it lists {status.get('toolsTotal', '?')} tools"
        case _:
            told = f"agent may call; URL and token are in the Secret {target.namespace}/{status.get('secretName')}"
    story.tell(f"{target.kind} {target.name} is Ready: {told}")


def play(running: LocalStack) -> Story:
    """Applies the quickstart, waits for it, and calls a tool as the connected agent."""
    cluster = running.parts.cluster
    documents = quickstart.load(running.host.manifests, running.image)
    story = Story()
    namespaces = [document for document in documents if document["kind"] == "Namespace"]
    cluster.apply(namespaces)
    cluster.apply([document for document in documents if document["kind"] != "Namespace"])
    story.tell(f"applied {quickstart.FOLDER.relative_to(quickstart.REPOSITORY)}: {len(documents)} objects")
    for kind in ("Toolbox", "MCPServer", "AgentMCPConnection"):
        for target in quickstart.targets(documents, kind):
            tell_ready(story, running, target)
    (connection,) = quickstart.targets(documents, "AgentMCPConnection")
    found = cluster.get(connection.resource, "-n", connection.namespace)
    secret = quickstart.read_secret(cluster, connection.namespace, found["status"]["secretName"])
    with agent.readable_errors():
        answer = asyncio.run(agent.call(secret, "echo", {"message": MESSAGE}))
    if MESSAGE not in answer.text:
        raise SetupError(f"the tool call came back wrong: {answer.text!r}")
    story.tell(f"the agent {found['spec']['agent']['name']} sees {len(answer.tools)} tools: {', '.join(answer.tools)}")
    story.tell(f"it called echo at {secret['url']}")
    story.tell(f"the answer came back in {answer.seconds * 1000:.0f} ms: {answer.text}")
    return story


def look_around(running: LocalStack) -> str:
    """The lines a person copies into another terminal."""
    cluster = running.parts.cluster
    kubectl = str(cluster.kubectl_path)
    return "\n".join(
        [
            "Look around, in another terminal:",
            f"  export KUBECONFIG={cluster.admin_kubeconfig}",
            *([] if kubectl == "/usr/bin/kubectl" else [f"  alias kubectl={kubectl}"]),
            "  kubectl get mcps,amc,tbx -A",
            "  kubectl describe mcps everything -n mcp-system",
            """  kubectl patch mcps everything -n mcp-system --type merge -p '{"spec":{"state":"Stopped"}}'""",
            f"  docker ps --filter label=magictoolbox.dev/host={running.host.host_id}",
            f"  {postgres.binaries() / 'psql'} '{running.parts.postgres.dsn()}'",
            f"Logs: {running.supervisor.logs}",
        ]
    )


def stay(supervisor: Supervisor) -> None:
    """Returns at Ctrl-C; says when a part ends by itself."""
    forever = threading.Event()
    ended: set[int] = set()
    try:
        while not forever.wait(1.0):
            for child in supervisor.children():
                if not child.running() and child.pid not in ended:
                    ended.add(child.pid)
                    say(str(child.explain("has ended by itself")))
    except KeyboardInterrupt:
        return


def run(once: bool) -> None:
    """Everything between start and end."""
    begin = time.monotonic()
    with stack.workspace() as supervisor:
        try:
            running = stack.start(supervisor, supervisor.folder)
            say(f"the system runs, {time.monotonic() - begin:.1f}s after the start")
            story = play(running)
            print("\nWhat happened, in seconds after `kubectl apply`:", *story.lines, sep="\n  ", flush=True)
            if not once:
                print(f"\n{look_around(running)}\n\nIt stays up until Ctrl-C, which removes all of it.", flush=True)
                stay(supervisor)
        finally:
            # From here on only the clean-up counts; a second Ctrl-C must not cut it short.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say("stopping and removing everything")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only if the tool call came back right."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the tool call")
    once = bool(parser.parse_args(arguments).once)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        run(once)
    except SetupError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped before it was ready", file=sys.stderr)
        return 130
    say("done: nothing is left running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
