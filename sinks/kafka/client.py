"""Connections to a Kafka cluster: settings, clients, and sentences for their errors."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import socket
import ssl
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sinks.address import SinkAddress
from sinks.sink import SinkAddressError, SinkError
from sinks.tls import TidySocket, TlsOptions, TlsOptionsError, find_tls_trouble, tls_cause

with warnings.catch_warnings():
    # it reads its own resources in a way that Python 3.11 calls old
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka
    from kafka import errors
    from kafka.net.inet import KafkaNetSocket
    from kafka.partitioner.default import murmur2

__all__ = [
    "BrokerClient",
    "close_sockets",
    "error_text",
    "errors",
    "kafka",
    "murmur2",
    "open_admin",
    "parse_broker",
    "parse_tls",
    "quieten_library",
]

log = logging.getLogger("sinks.kafka")

_TIMEOUT_S = 20.0
_CONNECT_S = 2.0
_COMPRESSIONS: dict[str, tuple[str, str] | None] = {
    "gzip": None,
    "lz4": ("lz4", "lz4"),
    "snappy": ("snappy", "python-snappy"),
    "zstd": ("zstandard", "zstandard"),
}
_TLS_NAMES = {"cafile": "ssl_cafile", "certfile": "ssl_certfile", "keyfile": "ssl_keyfile",
              "key_password": "ssl_password"}  # fmt: skip
_MOST_NOTES = 256
_OURS = frozenset({"bootstrap_servers", "key_serializer", "value_serializer", "partitioner", "kafka_client", "selector",
                   "metric_reporters", "ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_password",
                   "socket_options", "ssl_context", "sasl_oauth_token_provider",
                   "transactional_id", "transaction_timeout_ms"})  # fmt: skip
_UNANSWERED = (errors.KafkaTimeoutError, errors.RequestTimedOutError, errors.KafkaConnectionError, OSError)
_VAGUE = (*_UNANSWERED, errors.Cancelled, errors.IllegalStateError)
_SAYS_NOTHING = tuple(kind for kind in _VAGUE if kind is not OSError)
_LEADERLESS = (errors.LeaderNotAvailableError, errors.NotLeaderForPartitionError, errors.ReplicaNotAvailableError,
               errors.BrokerNotAvailableError, errors.KafkaStorageError)  # fmt: skip
_FORGOTTEN = (errors.UnknownProducerIdError, errors.OutOfOrderSequenceNumberError, errors.InvalidProducerEpochError,
              errors.InvalidProducerIdMappingError)  # fmt: skip

_opened: WeakKeyDictionary[Any, WeakSet[socket.socket]] = WeakKeyDictionary()
"""Sockets by the loop of their client."""
_here = threading.local()
"""The `loop` that connected last in this thread."""


class _Direct(KafkaNetSocket):  # type: ignore[misc]  # the library has no types
    """Connects as the library does, and remembers the sockets, of which 3.0.12 forgets some.

    Those that could not be connected, and those to which something was still to be written when a client was closed.
    """

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None) -> Any:
        _opened.setdefault(net, WeakSet()).add(sock)
        try:
            connected = await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise
        _here.loop = net
        return connected


class _Trust(ssl.SSLContext):
    """The socket that speaks TLS takes the place of the one that was connected: it is remembered too."""

    sslsocket_class = TidySocket

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(*arguments, **options)
        if (loop := getattr(_here, "loop", None)) is not None:
            _opened.setdefault(loop, WeakSet()).add(wrapped)
        return wrapped


def close_sockets(client: Any) -> None:
    """Of a client of kafka-python that was closed."""
    for sock in _opened.pop(client._net, ()):
        sock.close()


@dataclass
class BrokerClient:
    """How to reach a cluster: `servers` as "host:port", and kafka-python's settings by their names."""

    servers: list[str]
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    timeout_s: float = _TIMEOUT_S
    tls: TlsOptions = field(default_factory=TlsOptions)
    _clusters: list[Any] = field(default_factory=list, init=False, repr=False)  # what clients know of the brokers
    _threads: set[int] = field(default_factory=set, init=False, repr=False)  # of the library's clients

    def __str__(self) -> str:
        return ",".join(self.servers)

    def probe(self) -> None:
        """Raises `SinkError` when no server takes a connection, or its TLS is not to be trusted.

        kafka-python does not distinguish these, and waits for ever where a port without TLS answers.
        """
        causes = []
        for server in self.servers:
            host, _, port = server.rpartition(":")
            try:
                with socket.create_connection((host.strip("[]"), int(port)), timeout=self.timeout_s / 4) as connection:
                    if self._speaks_tls:
                        self._tls_context().wrap_socket(connection, server_hostname=host.strip("[]")).close()
                return
            except OSError as error:
                cause = tls_cause(error, has_certificate=self.tls.certfile is not None)
                causes.append(f"{server} {cause or f'does not answer ({error.strerror or error})'}")
        raise SinkError(f"no Kafka broker can be reached: {'; '.join(causes)}")

    def build(self, factory: Any, **settings: Any) -> Any:
        """A client of kafka-python. One that cannot be built leaves nothing open, which the library does not see to."""
        made: list[Any] = []
        self._threads.add(threading.get_ident())

        def client(*arguments: Any, **configuration: Any) -> Any:
            one = factory.DEFAULT_CONFIG["kafka_client"](*arguments, **configuration)
            # which 3.0.12 forgets to hand on
            one.cluster.config["allow_auto_create_topics"] = configuration.get("allow_auto_create_topics", False)
            made.append(one)
            self._clusters = [*self._clusters[-1:], one.cluster]
            return one

        try:
            settings.setdefault("proxy_url", "direct://")
            if self._speaks_tls:
                settings["ssl_context"] = self._tls_context()
            built = factory(bootstrap_servers=self.servers, kafka_client=client, **settings)
        except BaseException:
            self._remember_threads(made)
            for one in made:
                one.close()
                close_sockets(one)
            raise
        self._remember_threads([*made, built])
        return built

    def _remember_threads(self, clients: list[Any]) -> None:
        """Those in which the clients work, by which their lines in the library's log are known."""
        for client in clients:
            worker = getattr(client, "_sender", None) or getattr(getattr(client, "_net", None), "_io_thread", None)
            if worker is not None and worker.ident is not None:
                self._threads.add(worker.ident)

    def cause(self, error: Exception, since: float) -> Exception:
        """Returns the error, or its cause, which the library wrote to its log since then (monotonic seconds)."""
        hidden = _notes.newest(self._threads, since)
        return hidden if hidden is not None and isinstance(error, _VAGUE) else error

    def forget(self) -> None:
        """Forgets the threads of closed clients, since their numbers are given to other threads."""
        _notes.forget(self._threads)
        self._threads.clear()

    def sentence(self, error: Exception) -> str:
        """Returns a `cause` as a sentence that says what to do."""
        where = f"Kafka at {self}"
        if isinstance(error, errors.SaslAuthenticationFailedError | errors.IllegalSaslStateError):
            return f"{where} refuses the user or the password: check them and sasl_mechanism"
        if isinstance(error, errors.UnsupportedSaslMechanismError):
            return f"{where} does not know this sasl_mechanism: try PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
        if isinstance(error, errors.TopicAuthorizationFailedError):
            return f"{where} does not let this user use topic {_topic_of(error)}: ask for the right to"
        if isinstance(error, errors.ClusterAuthorizationFailedError) or "ClusterAuthorizationFailed" in str(error):
            return (
                f"{where} does not let this user send without duplicates: ask for the right IdempotentWrite on the "
                "cluster, or add enable_idempotence=false"
            )
        if isinstance(error, errors.GroupAuthorizationFailedError):
            return f"{where} does not let this user read as a member of this group: ask for the right to"
        if isinstance(error, errors.UnknownTopicOrPartitionError):
            return f"{where} has no topic {_topic_of(error)}: check its name, or have it made"
        if isinstance(error, errors.NotEnoughReplicasError | errors.NotEnoughReplicasAfterAppendError):
            return f"{where} has too few copies of topic {_topic_of(error)} in sync to promise anything"
        if isinstance(error, _LEADERLESS):
            return f"{where} has no leader for topic {_topic_of(error)} at present: check its brokers"
        if isinstance(error, _FORGOTTEN):
            return f"{where} has lost the state of this producer (did it lose its disk?): waiting events are sent again"
        if isinstance(error, (errors.KafkaConnectionError, *_UNANSWERED)) and (cause := self._find_cause()):
            return cause
        if isinstance(error, errors.KafkaConnectionError):
            return f"{where} broke off the connection: is it up, does it ask for a user?"
        if isinstance(error, _UNANSWERED):
            hint = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
            return f"{where} does not answer within {self.timeout_s:g} s{hint}: is it up, does it ask for a user?"
        return f"{where} failed ({error_text(error)})"

    def _find_cause(self) -> str:
        """What kafka-python reports as a broken connection only: TLS, or an advertised address that is dead."""
        for server in self.servers:
            host, port = _host_and_port(server)
            trouble = find_tls_trouble(
                host,
                port,
                self._tls_context() if self._speaks_tls else None,
                has_certificate=self.tls.certfile is not None,
                timeout_s=min(3.0, self.timeout_s),
            )
            if trouble:
                return f"{server} {trouble}"
        dead = [
            place for place in self._advertised_servers() if place not in self.servers and not _takes_connections(place)
        ]
        if dead:
            return (
                f"Kafka at {self} answers, but advertises {', '.join(dead)}, where no broker answers from here: set "
                "advertised.listeners of the broker to an address that this machine reaches"
            )
        return ""

    def _advertised_servers(self) -> list[str]:
        found: dict[str, None] = {}
        for cluster in self._clusters:
            for one in cluster.brokers():
                host = f"[{one.host}]" if ":" in one.host else one.host
                found[f"{host}:{one.port}"] = None
        return list(found)

    @property
    def _speaks_tls(self) -> bool:
        return str(self.settings.get("security_protocol", "")).endswith("SSL")

    def _tls_context(self) -> ssl.SSLContext:
        """Raises `TlsOptionsError`."""
        settings = self.settings
        context = self.tls.fill(_Trust(ssl.PROTOCOL_TLS_CLIENT))
        if not settings.get("ssl_check_hostname", True):
            context.check_hostname = False
        if settings.get("ssl_crlfile"):
            context.load_verify_locations(settings["ssl_crlfile"])
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context


@contextlib.contextmanager
def open_admin(broker: BrokerClient) -> Iterator[Any]:
    """kafka-python's admin client with those of the settings that it takes."""
    taken = kafka.KafkaAdminClient.DEFAULT_CONFIG
    timeout_ms = int(broker.timeout_s * 1000)
    settings = {"client_id": "groundstream", "request_timeout_ms": timeout_ms, "bootstrap_timeout_ms": timeout_ms // 2}
    settings |= {name: value for name, value in broker.settings.items() if name in taken}
    admin = broker.build(kafka.KafkaAdminClient, **settings)
    try:
        yield admin
    finally:
        admin.close()
        close_sockets(admin)


def parse_broker(address: SinkAddress, defaults: dict[str, Any], tls: TlsOptions | None = None) -> BrokerClient:
    """The servers and settings of an address; `defaults` are kafka-python's, by which words become numbers."""
    options = address.options
    timeout_s = options.number("timeout", _TIMEOUT_S, least=0.1)
    settings: dict[str, Any] = {}
    secure = address.scheme == "kafkas"
    if address.user is not None:
        settings["sasl_plain_username"] = address.user
        settings["sasl_plain_password"] = address.password or ""
        settings["sasl_mechanism"] = "PLAIN"
    settings["security_protocol"] = f"{'SASL_' * (address.user is not None)}{'SSL' if secure else 'PLAINTEXT'}"
    tls = tls or parse_tls(address)
    for name, default in defaults.items():
        if name in _OURS:
            continue
        text = options.text(name)
        if text is not None:
            settings[name] = _parse_setting(address, name, text, default)
    _check_compression(address, settings.get("compression_type"))
    options.finish()
    servers = [_with_port(server) for server in address.hosts.split(",") if server]
    if not servers:
        raise SinkAddressError(f"{address.public}: a host is missing: write {address.scheme}://HOST:PORT/TOPIC")
    broker = BrokerClient(servers, settings, timeout_s, tls)
    try:
        if secure:
            broker._tls_context()
    except (TlsOptionsError, OSError) as error:
        raise options.error(str(error)) from None
    return broker


def parse_tls(address: SinkAddress) -> TlsOptions:
    """The TLS options, which may also have kafka-python's names; those of a registry with TLS stand there too."""
    options = address.options
    for name, other in _TLS_NAMES.items():
        options.rename(other, name)
    registry = options.peek("registry") or ""
    return TlsOptions.from_options(options, secure=address.scheme == "kafkas" or registry.startswith("https:"))


def _check_compression(address: SinkAddress, name: str | None) -> None:
    """Raises `SinkAddressError` for a compression that there is not, or whose library is missing."""
    if name is None:
        return
    if name not in _COMPRESSIONS:
        raise address.options.error(f"option compression_type={name!r} must be one of none, {', '.join(_COMPRESSIONS)}")
    library = _COMPRESSIONS[name]
    if library and importlib.util.find_spec(library[0]) is None:
        raise address.options.error(
            f"option compression_type={name} needs {library[1]}: pip install {library[1]}, or use gzip"
        )


def _with_port(server: str) -> str:
    return server if re.search(r"[^:\]]:\d+$|\]:\d+$", server) else f"{server}:9092"


def _host_and_port(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _takes_connections(server: str) -> bool:
    try:
        socket.create_connection(_host_and_port(server), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def _parse_setting(address: SinkAddress, name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() in {"true", "false"}:
            return text.lower() == "true"
        raise address.options.error(f"option {name}={text!r} must be true or false")
    if isinstance(default, int | float) and name != "acks":
        try:
            return float(text) if "." in text else int(text)
        except ValueError:
            raise address.options.error(f"option {name}={text!r} must be a number") from None
    if name == "acks":
        return "all" if text in {"all", "-1"} else int(text) if text in {"0", "1"} else _bad_acks(address, text)
    return None if name == "compression_type" and text == "none" else text


def _bad_acks(address: SinkAddress, text: str) -> None:
    raise address.options.error(f"option acks={text!r} must be all, 1 or 0")


def error_text(error: BaseException) -> str:
    """Returns the error in a few words, without the numbers and names that the library puts before them."""
    said = str(error).rpartition("Error: ")[2]
    return said if said not in {"", "None"} else type(error).__name__


def _topic_of(error: BaseException) -> str:
    """kafka-python names it as text or in a set, or not at all."""
    named = error.args[0] if error.args else None
    names = sorted(map(str, named)) if isinstance(named, set | frozenset | list | tuple) else [str(named or "?")]
    return ", ".join(names)


class _ClientNotes(logging.Handler):
    """Keeps the newest error of every thread of kafka-python, which writes the causes of its retries to its log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._newest: OrderedDict[tuple[int, bool], tuple[float, Exception]] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        error = _error_in(record)
        if error is not None and record.thread is not None and not isinstance(error, _SAYS_NOTHING):
            key = record.thread, isinstance(error, OSError)
            self._newest[key] = time.monotonic(), error
            self._newest.move_to_end(key)
            while len(self._newest) > _MOST_NOTES:
                self._newest.popitem(last=False)
        log.debug("%s: %s", record.name, record.getMessage())

    def forget(self, threads: set[int]) -> None:
        for thread in threads:
            self._newest.pop((thread, False), None)
            self._newest.pop((thread, True), None)

    def newest(self, threads: set[int], since: float) -> Exception | None:
        """Returns the newest cause; a broken connection often follows the real cause, so it counts only alone."""
        for is_network in (False, True):
            notes = [self._newest.get((thread, is_network)) for thread in threads]
            found = [note for note in notes if note is not None and note[0] >= since]
            if found:
                return max(found, key=lambda note: note[0])[1]
        return None


def _error_in(record: logging.LogRecord) -> Exception | None:
    """Returns the error in a log line of `Sender._dispatch_error` or `ClusterMetadata.update_metadata`, if any."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    message = str(record.msg)
    if "Got error produce response" in message:
        _, partition, _, name, *_ = arguments
        return _named_error(str(name), str(getattr(partition, "topic", partition)))
    for words, error in _OF_TOPICS.items():
        if words in message:
            return error(str(arguments[0]))
    raised = record.exc_info[1] if record.exc_info else None
    return next((one for one in (*arguments, raised) if isinstance(one, Exception)), None)


def _named_error(name: str, topic: str) -> Exception:
    kind: type[Exception] = getattr(errors, name, errors.KafkaError)
    return kind(topic)


_OF_TOPICS: dict[str, type[Exception]] = {
    "is not authorized for this client": errors.TopicAuthorizationFailedError,
    "not found in cluster metadata": errors.UnknownTopicOrPartitionError,
    "is not available during auto-create": errors.LeaderNotAvailableError,
}
_notes = _ClientNotes()


def quieten_library() -> None:
    """Passes kafka-python's log on at debug level; its own debug lines hold passwords and stay off."""
    logger = logging.getLogger("kafka")
    logger.setLevel(logging.WARNING)
    if _notes not in logger.handlers:
        logger.addHandler(_notes)
        logger.propagate = False
