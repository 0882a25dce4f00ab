"""`make images`: the container images of the operator and of DTMA.

The base image is `$BASE_IMAGE` if given; else pulled where a registry can be reached; else made from Debian's packages.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from delivery import wheels
from localstack import cache, debian, docker
from localstack.docker import Engine
from localstack.kubernetes import REPOSITORY
from localstack.progress import SetupError, run_step, say, step
from localstack.stack import workspace

NAMES = ("operator", "dtma")
PREFIX = "localhost/magic-toolbox"
"""Where images are called something that no registry outside this machine answers to."""
TAG = "dev"
CONTEXTS = REPOSITORY / "images"
PULLED = "python:3.11-slim-bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates", "iptables")
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
BASE = f"magic-toolbox/base-delivery:{cache.content_hash([PULLED, *PACKAGES, *LEFT_OUT])}"


def _pull_base(engine: Engine) -> None:
    with step(f"pulling {PULLED}"):
        engine.docker("pull", "--quiet", PULLED, seconds=300)
    with tempfile.TemporaryDirectory(prefix="magic-toolbox-base-") as folder:
        install = "apt-get update && apt-get install -y --no-install-recommends ca-certificates iptables"
        (Path(folder) / "Dockerfile").write_text(f"FROM {PULLED}\nRUN {install} && rm -rf /var/lib/apt/lists/*\n")
        argv = ["docker", "build", "--tag", BASE, folder]
        run_step("base image with iptables", argv, cache.log("base-delivery"), seconds=300)


def _debootstrap_base(engine: Engine) -> None:
    with tempfile.TemporaryDirectory(prefix="magic-toolbox-base-") as folder:
        archive = Path(folder) / "base.tar"
        options = [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
        options.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        debian.bootstrap(archive, PACKAGES, *options, log="base-delivery")
        engine.docker("import", str(archive), BASE, seconds=120)


def base_image(engine: Engine) -> str:
    """The base of both images; made once per machine."""
    if given := os.environ.get("BASE_IMAGE"):
        return given
    with cache.lock(cache.root(), "base-delivery"):
        if not engine.has(BASE):
            try:
                _pull_base(engine)
            except SetupError as error:
                say(f"no pull ({str(error).rsplit(': ', 1)[-1][:100]})")
                _debootstrap_base(engine)
    return BASE


def build(engine: Engine, name: str, image: str) -> None:
    """Builds one image from its Dockerfile, without a network."""
    with tempfile.TemporaryDirectory(prefix="magic-toolbox-image-") as folder:
        context = Path(folder)
        shutil.copytree(CONTEXTS / name, context, dirs_exist_ok=True)
        wheels.assemble(name, context)
        argv = ["docker", "build", "--network=none", "--build-arg", f"BASE_IMAGE={base_image(engine)}"]
        argv += ["--tag", image, str(context)]
        run_step(f"building {image}", argv, cache.log(f"image-{name}"), seconds=600)


def sources_hash(name: str) -> str:
    """Twelve digits over everything that shapes an image, for a tag that changes with it."""
    parts: list[bytes | str] = [BASE, os.environ.get("BASE_IMAGE", "")]
    for folder in (CONTEXTS / name, REPOSITORY / "operator", REPOSITORY / "dtma", REPOSITORY / "crds"):
        parts += cache.folder_parts(folder)
    parts += [(REPOSITORY / file).read_bytes() for file in ("pyproject.toml", "requirements/dev.lock")]
    return cache.content_hash(parts)


def ensure(engine: Engine, name: str) -> str:
    """An image of the sources as they are now, for tests: built if this engine does not have it."""
    image = f"magic-toolbox/{name}:{sources_hash(name)}"
    with cache.lock(cache.root(), f"image-{name}"):
        if not engine.has(image):
            build(engine, name, image)
    return image


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds both images and says what they are called."""
    parser = argparse.ArgumentParser(prog="make images", description="The images of the operator and of DTMA.")
    parser.add_argument("--prefix", default=PREFIX, help="registry and folder (%(default)s)")
    parser.add_argument("--tag", default=TAG, help="(%(default)s)")
    given = parser.parse_args(arguments)
    try:
        with workspace() as supervisor:
            engine = docker.ensure(supervisor)
            for name in NAMES:
                image = f"{given.prefix}/{name}:{given.tag}"
                build(engine, name, image)
                size = int(engine.docker("image", "inspect", "--format", "{{.Size}}", image))
                say(f"{image} ({size // 1_000_000} MB)")
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
