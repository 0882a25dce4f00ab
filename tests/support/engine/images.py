"""A tiny image for tests of the engine: busybox, imported without a registry.

The statically linked binary comes from Debian's `busybox-static`, downloaded once per machine. Its image is tagged
by content, so that every test run but the first finds it in the engine.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

_REPOSITORY = "mtb-test-busybox"
_DEADLINE = 120
_APPLETS = (
    *("sh", "sleep", "nc", "wget", "httpd", "cat", "echo", "id", "ls", "touch", "kill", "true", "false", "dd", "tail"),
    *("ip", "nslookup", "mount", "env", "hostname", "ping", "printf", "yes", "seq", "ps", "mkdir", "date"),
)


def docker(*arguments: str, stdin: bytes | None = None) -> str:
    """Run the Docker command line; its output. Raises `CalledProcessError` with the output in it."""
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, timeout=_DEADLINE, check=False)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr.decode())
    return done.stdout.decode().strip()


def command(*words: str) -> str:
    """Run a program of the host; its output."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=_DEADLINE).stdout


def busybox_image() -> str:
    """Reference of the tiny image, imported if the engine doesn't have it."""
    archive = _root_filesystem(_busybox())
    reference = f"{_REPOSITORY}:{hashlib.sha256(archive).hexdigest()[:16]}"
    if not docker("images", "--quiet", reference):
        docker("import", "--change", 'CMD ["sleep", "86400"]', "-", reference, stdin=archive)
    return reference


def derived_image(base: str, *lines: str) -> str:
    """Reference of an image made of another by lines of a Dockerfile."""
    recipe = "\n".join((f"FROM {base}", *lines, ""))
    reference = f"{_REPOSITORY}:{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not docker("images", "--quiet", reference):
        docker("build", "--quiet", "--tag", reference, "-", stdin=recipe.encode())
    return reference


def _busybox() -> bytes:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magic-toolbox" / "busybox"
    binary = folder / "busybox"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        work = folder / f"download-{os.getpid()}"
        work.mkdir()
        try:
            subprocess.run(
                ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", "busybox-static"],
                cwd=work,
                check=True,
                capture_output=True,
                timeout=_DEADLINE,
            )
            package = next(work.glob("busybox-static_*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(package), "x"], cwd=work, check=True, timeout=_DEADLINE)
            (work / "x" / "bin" / "busybox").rename(binary)
        finally:
            shutil.rmtree(work)
    return binary.read_bytes()


def _root_filesystem(busybox: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for folder in ("bin", "tmp", "etc", "www"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        program = tarfile.TarInfo("bin/busybox")
        program.mode, program.size = 0o755, len(busybox)
        archive.addfile(program, io.BytesIO(busybox))
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        passwd = b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
        users = tarfile.TarInfo("etc/passwd")
        users.mode, users.size = 0o644, len(passwd)
        archive.addfile(users, io.BytesIO(passwd))
    return out.getvalue()
