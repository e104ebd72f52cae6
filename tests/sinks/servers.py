"""Real servers from Debian's packages for tests, on loopback and free ports; tests skip where one is not installed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.sinks.broker import free_port


def find_program(name: str) -> str:
    """The path of an installed program; skips the test where there is none."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None and not versions:
        pytest.skip(f"needs {name} from Debian's packages")
    return str(versions[-1]) if versions else str(path)


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path, **options: object) -> Iterator[int]:
    """Runs a server until the block ends; yields its port once it takes connections."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)  # type: ignore[call-overload]
        try:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert process.poll() is None, log.read_text(errors="replace")
                assert time.monotonic() < deadline, log.read_text(errors="replace")
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def mosquitto(folder: Path, *lines: str) -> Iterator[int]:
    """The MQTT broker; `lines` are added to its configuration."""
    port = free_port()
    user = ["user root"] if os.geteuid() == 0 else []
    config = folder / "mosquitto.conf"
    config.write_text("\n".join([*user, f"listener {port} 127.0.0.1", "allow_anonymous true", *lines]) + "\n")
    with running([find_program("mosquitto"), "-c", str(config)], port, folder / "mosquitto.log") as port:
        yield port


@contextlib.contextmanager
def redis_server(folder: Path, *options: str, tls: bool = False) -> Iterator[int]:
    """Redis; `tls` has it speak TLS alone, with the files that `options` name."""
    port = free_port()
    ports = ["--port", "0", "--tls-port", str(port)] if tls else ["--port", str(port)]
    command = [
        find_program("redis-server"),
        "--bind",
        "127.0.0.1",
        *ports,
        "--save",
        "",
        "--dir",
        str(folder),
        *options,
    ]
    with running(command, port, folder / "redis.log") as port:
        yield port


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[int]:
    """PostgreSQL with the user `me`, password `sesame`, and the database `postgres`."""
    data, port = folder / "data", free_port()
    initdb, server = find_program("initdb"), find_program("postgres")
    password = folder / "password"
    password.write_text("sesame\n")
    options: dict[str, object] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            account = pwd.getpwnam("nobody")
        for path in (folder, password):
            os.chown(path, account.pw_uid, account.pw_gid)
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    command = [initdb, "-D", str(data), "-U", "me", "--pwfile", str(password), "-A", "scram-sha-256", "--no-sync"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, **options)  # type: ignore[call-overload]
    command = [server, "-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"]
    with running(command, port, folder / "postgres.log", cwd=folder, **options) as port:
        time.sleep(0.3)
        yield port
