"""Removes a host's firewall rules after it is gone: nothing else would, once its state folder is deleted."""

from __future__ import annotations

import shlex
import shutil
import subprocess

TABLES = ("filter", "nat", "mangle", "raw")


def removals(saved: str, text: str) -> list[list[str]]:
    """Arguments of the `iptables` calls that remove every rule and chain whose line holds `text`.

    `saved` is the output of `iptables-save`. Rules go first: a chain that is still jumped to cannot be deleted.
    """
    rules: list[list[str]] = []
    chains: list[list[str]] = []
    table = "filter"
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":") and text in (name := line[1:].split()[0]):
            chains += [["-t", table, "-F", name], ["-t", table, "-X", name]]
        elif line.startswith("-A ") and text in line:
            rules.append(["-t", table, "-D", *shlex.split(line)[1:]])
    flushes = [chain for chain in chains if chain[2] == "-F"]
    deletions = [chain for chain in chains if chain[2] == "-X"]
    return rules + flushes + deletions


def remove(text: str) -> None:
    """Removes IPv4 and IPv6 rules and chains whose specification holds `text`."""
    if len(text) < 6:
        raise ValueError(f"{text!r} is too short to name the rules of one host")
    for program in ("iptables", "ip6tables"):
        save = f"{program}-save"
        if shutil.which(save) is None:
            continue
        saved = subprocess.run([save], capture_output=True, text=True, timeout=20, check=True).stdout
        for arguments in removals(saved, text):
            done = subprocess.run(
                [program, "--wait", "5", *arguments], capture_output=True, text=True, timeout=20, check=False
            )
            if done.returncode != 0:
                print(f"{program} {shlex.join(arguments)}: {done.stderr.strip()}", flush=True)
