"""The examples' images in the local registry: built once from `examples/images/NAME`, cached, pushed every run.

What they are built from is said by `recipes`. The base image is pulled where a registry can be reached; otherwise it
is made from Debian's packages, Node.js comes from a Python wheel, and git out of its package. Packages are fetched
here, on the host, so that the build itself needs no network.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from localstack import cache, debian, node, registry
from localstack.docker import Engine
from localstack.processes import Supervisor
from localstack.progress import SetupError, run_step, say, step
from localstack.recipes import Base, Recipe, recipe
from localstack.registry import Registry

QUICKSTART_PREFIX = "registry.example.com/magic-toolbox/mcp-"
"""How the quickstart names images; what follows is the name here, then a colon and a tag."""

LOCAL = "magic-toolbox"
PULLED: dict[Base, str] = {
    "python": "python:3.11-slim-bookworm",
    "git": "python:3.11-bookworm",
    "node": "node:22-bookworm-slim",
}
RECIPE = "1"
"""Raise it when the way images are built changes."""

_base_lock = threading.Lock()
_store_lock = threading.Lock()


def _debootstrap(engine: Engine, image: str) -> None:
    with tempfile.TemporaryDirectory(prefix="magic-toolbox-base-") as folder:
        archive = Path(folder) / "base.tar"
        debian.bootstrap(archive, ["python3", "python3-venv"], log="base-image")
        engine.docker("import", str(archive), image, seconds=120)


def _add(engine: Engine, base: str, program: Path, image: str) -> None:
    with tempfile.TemporaryDirectory(prefix="magic-toolbox-base-") as folder:
        shutil.copy2(program, Path(folder) / program.name)
        (Path(folder) / "Dockerfile").write_text(f"FROM {base}\nCOPY {program.name} /usr/local/bin/{program.name}\n")
        engine.docker("build", "--quiet", "--tag", image, folder, seconds=120)


def _git() -> Path:
    """The program alone: what servers do with a repository on disk is built into it."""

    def build(folder: Path) -> None:
        debian.extract("git", "usr/bin/git", folder)

    return cache.ensure("debian-git", build) / "git"


def base_image(engine: Engine, base: Base) -> str:
    """The local name of a base image, pulled or made."""
    image = f"{LOCAL}/base-{base}:{RECIPE}"
    with _base_lock:
        if engine.has(image):
            return image
        try:
            with step(f"pulling {PULLED[base]}"):
                engine.docker("pull", "--quiet", PULLED[base], seconds=300)
            engine.docker("tag", PULLED[base], image)
            return image
        except SetupError as error:
            say(f"no pull ({str(error).rsplit(': ', 1)[-1][:100]})")
        python = f"{LOCAL}/base-python:{RECIPE}"
        if not engine.has(python):
            _debootstrap(engine, python)
        if base != "python":
            _add(engine, python, node.program() if base == "node" else _git(), image)
        return image


def _vendor(made: Recipe, context: Path) -> None:
    """Fetches the locked packages into `vendor/` of a copy of the build context."""
    vendor = context / "vendor"
    vendor.mkdir()
    log = cache.log(f"vendor-{made.name}")
    title = f"packages of {made.name}"
    if made.kind == "python":
        argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--require-hashes", "--no-deps"]
        argv += ["--only-binary=:all:", "--python-version=3.11", "--progress-bar=off"]
        argv += ["-r", str(context / "requirements.txt"), "-d", str(vendor / "wheels")]
        run_step(title, argv, log, seconds=300)
        return
    node.install(context, vendor, title, log)


def _build(engine: Engine, made: Recipe, image: str) -> None:
    with tempfile.TemporaryDirectory(prefix="magic-toolbox-image-") as folder:
        copy = Path(folder) / made.name
        shutil.copytree(made.context, copy, ignore=shutil.ignore_patterns("vendor", "node_modules", "__pycache__"))
        _vendor(made, copy)
        arguments = {"BASE_IMAGE": base_image(engine, made.base), **made.arguments}
        argv = ["docker", "build", "--network=none", "--file", str(made.dockerfile)]
        for key, value in arguments.items():
            argv += ["--build-arg", f"{key}={value}"]
        argv += ["--tag", image, str(copy)]
        run_step(f"building image {made.name}", argv, cache.log(f"image-{made.name}"), seconds=300)


def local_name(name: str) -> str:
    """Name and tag of an example's image in the engine: the tag is a hash over what it is built from."""
    return f"{LOCAL}/mcp-{name}:{cache.content_hash([RECIPE, *recipe(name).parts()])}"


def built(engine: Engine, name: str) -> str:
    """The name of an example's image in the engine, built if it is not there."""
    image = local_name(name)
    with cache.lock(cache.root(), f"build-{name}"):
        if not engine.has(image):
            _build(engine, recipe(name), image)
    return image


def prepare(supervisor: Supervisor, engine: Engine, name: str) -> Path:
    """The image as a registry stores it: from the cache, else built. Registries of later runs start with a copy."""
    slot = f"image-{name}-{local_name(name).rsplit(':', 1)[1]}"

    def build(folder: Path) -> None:
        image = built(engine, name)
        store = registry.start(supervisor, folder, f"registry for {name}")
        pushed = _pushed_name(store, image)
        with step(f"pushing image {name}"):
            engine.docker("tag", image, pushed)
            engine.docker("push", "--quiet", pushed, seconds=180)
        store.child.stop()

    stored = cache.ensure(slot, build)
    cache.prune(cache.root(), f"image-{name}-*", slot)
    return stored / "blobs"


def _pushed_name(store: Registry, image: str) -> str:
    return f"{store.address}/{image.removeprefix(f'{LOCAL}/')}"


def _link_or_copy(source: str, target: str) -> None:
    # Blobs are named by their digest and never rewritten, so runs can share them; small files are rewritten.
    if Path(source).name == "data":
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def ensure(supervisor: Supervisor, engine: Engine, store: Registry, name: str) -> str:
    """Puts an example's image into the local registry; its name there, `127.0.0.1:PORT/mcp-NAME:HASH`."""
    pushed = _pushed_name(store, local_name(name))
    repository, tag = pushed.removeprefix(f"{store.address}/").rsplit(":", 1)
    if tag not in store.tags(repository):
        stored = prepare(supervisor, engine, name)
        with _store_lock:
            for path in stored.rglob("*"):
                target = store.blobs / path.relative_to(stored)
                if path.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                elif not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link_or_copy(str(path), str(target))
        if tag not in store.tags(repository):
            raise SetupError(f"the cached image {stored} is damaged: remove the folder and run this again")
    return pushed
