"""A proxy that reads what it hands on: it refuses as a leader or an authoriser would, and asks for a password.

The messages are read and written with kafka-python's own definitions of the protocol.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import io
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kafka.protocol.admin import CreateTopicsRequest, CreateTopicsResponse
from kafka.protocol.api_key import ApiKey
from kafka.protocol.api_message import ApiMessage
from kafka.protocol.consumer import ListOffsetsRequest, ListOffsetsResponse
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse
from kafka.protocol.producer import (
    InitProducerIdRequest,
    InitProducerIdResponse,
    ProduceRequest,
    ProduceResponse,
)
from kafka.protocol.sasl import (
    SaslAuthenticateRequest,
    SaslAuthenticateResponse,
    SaslHandshakeRequest,
    SaslHandshakeResponse,
)

from sinks.kafka.client import BrokerClient as Cluster
from sinks.kafka.client import open_admin
from tests.sinks.broker import Broker, Proxy, free_port

AUTHENTICATION_FAILED = 58
UNSUPPORTED_MECHANISM = 33
UNKNOWN_TOPIC = 3
MESSAGE_TOO_LARGE = 10
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

_MESSAGES: dict[int, tuple[type[ApiMessage], type[ApiMessage]]] = {
    ApiKey.Produce: (ProduceRequest, ProduceResponse),
    ApiKey.ListOffsets: (ListOffsetsRequest, ListOffsetsResponse),
    ApiKey.Metadata: (MetadataRequest, MetadataResponse),
    ApiKey.SaslHandshake: (SaslHandshakeRequest, SaslHandshakeResponse),
    ApiKey.ApiVersions: (ApiVersionsRequest, ApiVersionsResponse),
    ApiKey.CreateTopics: (CreateTopicsRequest, CreateTopicsResponse),
    ApiKey.InitProducerId: (InitProducerIdRequest, InitProducerIdResponse),
    ApiKey.SaslAuthenticate: (SaslAuthenticateRequest, SaslAuthenticateResponse),
}


class KafkaProxy(Proxy):
    """`answer` says by `ApiKey` who answers in the broker's place (None: the broker), `change` who alters its answers.

    With `users` (name -> password) only authenticated clients get through.
    """

    def __init__(
        self, target: int, *, users: dict[str, str] | None = None, mechanisms: Sequence[str] = MECHANISMS
    ) -> None:
        self.users = users
        self.mechanisms = mechanisms
        self.answer: dict[int, Callable[[Any], Any]] = {}
        self.change: dict[int, Callable[[Any], None]] = {}
        self.gone: set[str] = set()  # topics that were deleted
        super().__init__(target)

    def delete_topic(self, name: str) -> None:
        """As Kafka does; the broker of the tests goes on to take what is written to a topic that is gone."""
        with open_admin(Cluster([self.address])) as admin:
            admin.delete_topics([name])
        self.gone.add(name)

    def refuse_writes(self, topic: str, error: int) -> None:
        """What is produced to the topic does not reach the broker; `error` is answered."""
        self.answer[ApiKey.Produce] = lambda request: _refused_produce(request, topic, error)

    def limit_messages(self, topic: str, limit: int) -> None:
        """As the topic's `max.message.bytes`: what is larger, as it is sent, is refused."""
        self.answer[ApiKey.Produce] = lambda request: (
            _refused_produce(request, topic, MESSAGE_TOO_LARGE) if _largest(request) > limit else None
        )

    def refuse_topic(self, topic: str, error: int) -> None:
        """Answers requests about the topic with `error`."""
        self.change[ApiKey.Metadata] = lambda response: _refused_metadata(response, topic, error)

    def lose_leader(self, topic: str, error: int) -> None:
        """The topic's partitions have no leader: every request for them is answered with `error`."""
        self.refuse_writes(topic, error)
        self.change[ApiKey.Metadata] = lambda response: _leaderless(response, topic)

    def be_well(self) -> None:
        self.answer.clear()
        self.change.clear()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        talk = _Talk(self, client, server)
        with contextlib.suppress(OSError, ValueError):
            while not self._closing.is_set():
                if self._frozen.is_set():
                    time.sleep(0.01)
                    continue
                for end in select.select([client, server], [], [], 0.05)[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    (talk.from_client if end is client else talk.from_server)(data)


class _Talk:
    """One connection. Answers leave in the order of the requests, from the proxy and the broker alike."""

    def __init__(self, proxy: KafkaProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._said = _Frames()
        self._answered = _Frames()
        self._pending: deque[tuple[int, int, bytes | None]] = deque()  # api key, version, our own answer
        self._login = None if proxy.users is None else _Login(proxy.users, proxy.mechanisms)

    def from_client(self, data: bytes) -> None:
        for frame in self._said.take(data):
            key, version = int.from_bytes(frame[:2], "big"), int.from_bytes(frame[2:4], "big")
            answer = self._own_answer(key, version, frame)
            if answer is None:
                self._server.sendall(_framed(frame))
            if key != ApiKey.Produce or answer is not None or _wants_answer(version, frame):
                self._pending.append((key, version, answer))
            self._flush()

    def from_server(self, data: bytes) -> None:
        for frame in self._answered.take(data):
            key, version, _ = self._pending.popleft()
            change = self._proxy.change.get(key)
            if key == ApiKey.ApiVersions and self._login is not None:
                change = _offer_login
            self._client.sendall(_framed(frame) if change is None else _changed(key, version, frame, change))
            self._flush()

    def _own_answer(self, key: int, version: int, frame: bytes) -> bytes | None:
        if self._login is not None and not self._login.is_done and key != ApiKey.ApiVersions:
            if key not in {ApiKey.SaslHandshake, ApiKey.SaslAuthenticate}:
                raise ConnectionError("the client did not authenticate")
            answer: Callable[[Any], Any] | None = self._login.answer
        else:
            answer = self._proxy.answer.get(key)
        if answer is None and not (self._proxy.gone and key in {ApiKey.Produce, ApiKey.CreateTopics}):
            return None
        request: Any = _MESSAGES[key][0].decode(frame, version=version, header=True)
        response = answer(request) if answer is not None else self._answer_for_the_gone(request)
        return None if response is None else _encoded(response, version, frame[4:8])

    def _answer_for_the_gone(self, request: Any) -> Any:
        if isinstance(request, CreateTopicsRequest):
            self._proxy.gone -= {one.name for one in request.topics}
            return None
        missing = [one.name for one in request.topic_data if one.name in self._proxy.gone]
        return _refused_produce(request, missing[0], UNKNOWN_TOPIC) if missing else None

    def _flush(self) -> None:
        while self._pending and (answer := self._pending[0][2]) is not None:
            self._client.sendall(answer)
            self._pending.popleft()


class _Frames:
    """Messages out of a stream of bytes, each behind its length."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> Iterator[bytes]:
        self._rest += data
        while len(self._rest) >= 4 and len(self._rest) >= (end := 4 + int.from_bytes(self._rest[:4], "big")):
            frame, self._rest = self._rest[4:end], self._rest[end:]
            yield frame


class _Login:
    """The server's side of SASL: PLAIN (RFC 4616), SCRAM (RFC 5802)."""

    def __init__(self, users: dict[str, str], mechanisms: Sequence[str]) -> None:
        self._users = users
        self._mechanisms = mechanisms
        self._step: Callable[[bytes], bytes] = self._plain
        self._hash = ""
        self._signature = b""
        self.is_done = False

    def answer(self, request: Any) -> Any:
        if isinstance(request, SaslHandshakeRequest):
            known = request.mechanism in self._mechanisms
            if request.mechanism.startswith("SCRAM"):
                self._hash = {"256": "sha256", "512": "sha512"}[request.mechanism[-3:]]
                self._step = self._scram_first
            return SaslHandshakeResponse(
                error_code=0 if known else UNSUPPORTED_MECHANISM, mechanisms=list(self._mechanisms)
            )
        try:
            said = self._step(bytes(request.auth_bytes))
        except PermissionError as error:
            return SaslAuthenticateResponse(
                error_code=AUTHENTICATION_FAILED, error_message=str(error), auth_bytes=b"", session_lifetime_ms=0
            )
        return SaslAuthenticateResponse(error_code=0, error_message=None, auth_bytes=said, session_lifetime_ms=0)

    def _plain(self, token: bytes) -> bytes:
        _, user, password = token.decode().split("\0")
        if self._users.get(user) != password:
            raise PermissionError("Authentication failed: Invalid username or password")
        self.is_done = True
        return b""

    def _scram_first(self, token: bytes) -> bytes:
        bare = token.removeprefix(b"n,,")
        fields = dict(part.split(b"=", 1) for part in bare.split(b","))
        password = self._users.get(fields[b"n"].decode(), "")
        salt, rounds = b"salt of the test", 4096
        first = b"r=%spepper,s=%s,i=%d" % (fields[b"r"], base64.b64encode(salt), rounds)
        salted = hashlib.pbkdf2_hmac(self._hash, password.encode(), salt, rounds)
        self._step = lambda final: self._scram_final(salted, bare + b"," + first, final)
        return first

    def _scram_final(self, salted: bytes, before: bytes, token: bytes) -> bytes:
        without_proof, _, proof = token.rpartition(b",p=")
        spoken = before + b"," + without_proof
        client_key = self._hmac(salted, b"Client Key")
        stored = hashlib.new(self._hash, client_key).digest()
        expected = bytes(a ^ b for a, b in zip(client_key, self._hmac(stored, spoken), strict=True))
        if not hmac.compare_digest(base64.b64decode(proof), expected):
            raise PermissionError("Authentication failed during authentication due to invalid credentials")
        self.is_done = True
        return b"v=" + base64.b64encode(self._hmac(self._hmac(salted, b"Server Key"), spoken))

    def _hmac(self, key: bytes, text: bytes) -> bytes:
        return hmac.new(key, text, self._hash).digest()


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def _encoded(response: Any, version: int, correlation: bytes) -> bytes:
    flexible = response.flexible_version_q(version) and not isinstance(response, ApiVersionsResponse)
    response._header = None
    return _framed(correlation + b"\0" * flexible + response.encode(version=version))


def _changed(key: int, version: int, frame: bytes, change: Callable[[Any], None]) -> bytes:
    response_class: Any = _MESSAGES[key][1]
    head = io.BytesIO(frame)
    response_class.parse_header(head, version=version)
    response = response_class.decode(frame[head.tell() :], version=version)
    change(response)
    return _encoded(response, version, frame[:4])


def _wants_answer(version: int, frame: bytes) -> bool:
    request: Any = ProduceRequest.decode(frame, version=version, header=True)
    return bool(request.acks != 0)


def _offer_login(response: Any) -> None:
    known = {one.api_key for one in response.api_keys}
    for key in {ApiKey.SaslHandshake, ApiKey.SaslAuthenticate} - known:
        response.api_keys.append(ApiVersionsResponse.ApiVersion(api_key=int(key), min_version=0, max_version=1))


def _refused_produce(request: Any, topic: str, error: int) -> Any:
    if topic not in {one.name for one in request.topic_data}:
        return None
    answers = ProduceResponse.TopicProduceResponse
    return ProduceResponse(
        throttle_time_ms=0,
        responses=[
            answers(
                name=one.name,
                partition_responses=[
                    answers.PartitionProduceResponse(
                        index=part.index,
                        error_code=error,
                        base_offset=-1,
                        log_append_time_ms=-1,
                        log_start_offset=-1,
                        record_errors=[],
                        error_message=None,
                    )
                    for part in one.partition_data
                ],
            )
            for one in request.topic_data
        ],
    )


def _largest(request: Any) -> int:
    return max(len(part.records) for topic in request.topic_data for part in topic.partition_data)


def _refused_metadata(response: Any, topic: str, error: int) -> None:
    for one in response.topics:
        if one.name == topic:
            one.error_code = error
            one.partitions = []


def _leaderless(response: Any, topic: str) -> None:
    for one in response.topics:
        for part in one.partitions if one.name == topic else ():
            part.error_code = 5  # LEADER_NOT_AVAILABLE
            part.leader_id = -1


@contextlib.contextmanager
def broker_behind_kafka_proxy(**options: Any) -> Iterator[tuple[Broker, KafkaProxy]]:
    """Options as for `KafkaProxy`."""
    broker = Broker(free_port())
    proxy = KafkaProxy(broker.port, **options)
    broker.restart(advertised=proxy.port)
    try:
        yield broker, proxy
    finally:
        proxy.close()
        broker.stop()
