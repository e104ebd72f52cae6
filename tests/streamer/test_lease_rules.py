"""Leases of cameras: never two holders, and a camera whose node is lost is held again within a bound."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamer.cluster.lease_address import open_lease_store
from streamer.cluster.lease_book import EXPIRE_S, RENEW_EVERY_S, LeaseAnswer, LeaseBook, LeaseError
from streamer.cluster.lease_store import SqliteLeaseStore
from streamer.cluster.node_leases import NodeLeases
from streamer.errors import ConfigError

R = TypeVar("R")

CAMERAS = ["door", "gate", "yard", "hall", "roof"]
NODES = ["a", "b", "c"]
START_NS = 1_800_000_000_000_000_000


class World:
    """Nodes with clocks of their own around one book, on a simulated clock."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.book = LeaseBook()
        self.book.set_cameras(CAMERAS)
        self.is_away = False
        self.is_answer_lost = False
        self.before_commit: Callable[[], object] = lambda: None
        self.after_commit: Callable[[], object] = lambda: None
        self.granted: set[tuple[str, int]] = set()
        self.nodes: dict[str, Node] = {}

    def update(self, function: Callable[[LeaseBook], R]) -> R:
        if self.is_away:
            raise LeaseError("the store is away")
        before, self.before_commit = self.before_commit, lambda: None
        before()
        held = {camera.name: camera.epoch for camera in self.book.cameras.values()}
        result = function(self.book)
        for camera in self.book.cameras.values():
            if camera.epoch != held.get(camera.name):
                assert camera.epoch > held.get(camera.name, 0), "an epoch went back"
                assert (camera.name, camera.epoch) not in self.granted, "an epoch was given twice"
                self.granted.add((camera.name, camera.epoch))
        after, self.after_commit = self.after_commit, lambda: None
        after()
        if self.is_answer_lost:
            self.is_answer_lost = False
            raise LeaseError("the answer was lost")
        return result

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        self.check()

    def check(self) -> None:
        for camera in CAMERAS:
            senders = [name for name, node in self.nodes.items() if node.may_send(camera)]
            assert len(senders) <= 1, f"{camera} is held by {senders} at {self.now_s}"


class Node:
    """A node that renews whenever `act` is called. Its clock and its time of day have offsets of their own."""

    def __init__(self, world: World, name: str, offset_s: float) -> None:
        self.world = world
        self.name = name
        self.offset_s = offset_s
        self.held: dict[str, int] = {}
        self.answer: LeaseAnswer | None = None
        self.start()

    def start(self) -> None:
        """A new process."""
        self.held = {}
        self.answer = None
        world = self.world
        self.leases = NodeLeases(
            world,  # type: ignore[arg-type]
            self.name,
            clock=lambda: world.now_s + self.offset_s,
            wall_ns=lambda: START_NS + int((world.now_s - self.offset_s) * 1e9),
        )

    def may_send(self, camera: str) -> bool:
        return camera in self.held and bool(self.leases.is_good(camera, self.held[camera]))

    def act(self) -> None:
        try:
            if not self.leases.is_joined:
                self.held = {}
                self.leases.join()
                return
            self.answer = self.leases.renew(self.world.book.revision)
            if self.answer is None:
                return
            self.held = {lease.camera: lease.epoch for lease in self.answer.leases.values()}
            for camera in self.answer.handovers:
                del self.held[camera]  # its last event is safe
                self.leases.release(self.answer.leases[camera])
        except LeaseError:
            pass

    def leave(self) -> None:
        self.held = {}
        with contextlib.suppress(LeaseError):
            self.leases.leave()


class LeaseMachine(RuleBasedStateMachine):
    """Renewals in any order, lost and late answers, frozen, killed and restarted nodes, a store that is away."""

    @initialize(offsets=st.lists(st.floats(-500, 500), min_size=3, max_size=3))
    def begin(self, offsets: list[float]) -> None:
        self.world = World()
        for name, offset_s in zip(NODES, offsets, strict=True):
            self.world.nodes[name] = Node(self.world, name, offset_s)

    @rule(seconds=st.floats(0.1, 9.0))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(order=st.permutations(NODES), seconds=st.integers(1, 9))
    def work(self, order: list[str], seconds: int) -> None:
        self._run(order, seconds)

    @rule(name=st.sampled_from(NODES))
    def renew(self, name: str) -> None:
        self.world.nodes[name].act()

    @rule(
        name=st.sampled_from(NODES),
        other=st.sampled_from(NODES),
        before_s=st.floats(0, 8),
        after_s=st.floats(0, 8),
        is_lost=st.booleans(),
    )
    def renew_slowly(self, name: str, other: str, before_s: float, after_s: float, is_lost: bool) -> None:
        """A request and its answer take their time, while another node acts."""
        world = self.world

        def pass_time(seconds: float) -> None:
            world.advance(seconds)
            if other != name:
                world.nodes[other].act()

        world.before_commit = lambda: pass_time(before_s)
        world.after_commit = lambda: pass_time(after_s)
        world.is_answer_lost = is_lost
        world.nodes[name].act()
        world.before_commit = world.after_commit = lambda: None
        world.is_answer_lost = False

    @rule(name=st.sampled_from(NODES))
    def kill_and_restart(self, name: str) -> None:
        self.world.nodes[name].start()

    @rule(name=st.sampled_from(NODES))
    def stop(self, name: str) -> None:
        self.world.nodes[name].leave()

    @rule(name=st.sampled_from(NODES), is_draining=st.booleans())
    def drain(self, name: str, is_draining: bool) -> None:
        if name in self.world.book.nodes:
            self.world.book.drain_node(name, is_draining=is_draining)

    @rule(is_away=st.booleans())
    def lose_store(self, is_away: bool) -> None:
        self.world.is_away = is_away

    @rule(cameras=st.sets(st.sampled_from(CAMERAS)))
    def change_cameras(self, cameras: set[str]) -> None:
        self.world.book.set_cameras(sorted(cameras))

    @rule(names=st.sets(st.sampled_from(NODES), min_size=1))
    def every_camera_is_held_again_within_a_bound(self, names: set[str]) -> None:
        """These nodes work, the others are silent: within the time of a death and a join, all cameras are theirs."""
        self.world.is_away = False
        alive = sorted(names)
        for name in alive:
            if name in self.world.book.nodes:
                self.world.book.drain_node(name, is_draining=False)
        self._run(alive, 2 * int(EXPIRE_S) + 8)
        wanted = {camera.name for camera in self.world.book.cameras.values() if camera.is_wanted}
        sending = {camera for name in alive for camera in wanted if self.world.nodes[name].may_send(camera)}
        assert sending == wanted

    @invariant()
    def no_camera_has_two_holders(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def _run(self, names: list[str], seconds: int) -> None:
        for _ in range(seconds):
            for name in names:
                self.world.nodes[name].act()
                self.world.check()
            self.world.advance(RENEW_EVERY_S)


TestLeases = LeaseMachine.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def work(world: World, names: list[str], seconds: int) -> None:
    for _ in range(seconds):
        for name in names:
            world.nodes[name].act()
        world.advance(RENEW_EVERY_S)


@pytest.fixture
def world() -> World:
    world = World()
    for number, name in enumerate(NODES):
        world.nodes[name] = Node(world, name, 37.0 * number)
    return world


def held(world: World) -> dict[str, set[str]]:
    return {name: {camera for camera in CAMERAS if node.may_send(camera)} for name, node in world.nodes.items()}


def test_nodes_that_start_together_share_the_cameras(world):
    work(world, NODES, 5)
    assert sorted(len(cameras) for cameras in held(world).values()) == [1, 2, 2]


def test_a_death_moves_only_the_cameras_of_the_dead_within_seven_seconds(world):
    work(world, NODES, 5)
    before = held(world)
    work(world, ["a", "b"], 7)
    after = held(world)
    assert after["a"] >= before["a"]
    assert after["b"] >= before["b"]
    assert after["a"] | after["b"] == set(CAMERAS)


def test_a_late_node_gets_its_share_one_camera_at_a_time(world):
    work(world, ["a", "b"], 5)
    counts = []
    for _ in range(8):
        work(world, NODES, 1)
        counts.append(len(held(world)["c"]))
    assert counts[-1] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(counts))


def test_a_draining_node_hands_all_over_and_takes_none_until_it_is_undone(world):
    work(world, NODES, 5)
    world.book.drain_node("a", is_draining=True)
    work(world, NODES, 4)
    assert held(world)["a"] == set()
    assert held(world)["b"] | held(world)["c"] == set(CAMERAS)
    world.book.drain_node("a", is_draining=False)
    work(world, NODES, 8)
    assert held(world)["a"]


def test_the_last_node_keeps_its_cameras_while_it_drains(world):
    work(world, ["a"], 5)
    world.book.drain_node("a", is_draining=True)
    work(world, ["a"], 4)
    assert held(world)["a"] == set(CAMERAS)


def test_a_capacity_is_never_exceeded(world):
    world.nodes["a"].leases._capacity = 2
    work(world, ["a"], 8)
    assert len(held(world)["a"]) == 2


def test_cameras_stay_where_they_are_when_the_store_was_away(world):
    work(world, NODES, 5)
    before = held(world)
    world.is_away = True
    work(world, NODES, 20)
    assert held(world) == {name: set() for name in NODES}
    world.is_away = False
    work(world, NODES, 4)
    assert held(world) == before


def test_a_second_process_of_a_name_is_refused_while_the_first_one_renews(world):
    work(world, ["a"], 4)
    twin = Node(world, "a", 5.0)
    for _ in range(10):
        twin.act()
        work(world, ["a"], 1)
    assert not twin.leases.is_joined
    assert held(world)["a"] == set(CAMERAS)


def test_a_takeover_says_why_and_since_when_the_camera_was_dark(world):
    work(world, ["a"], 5)
    work(world, ["b"], 8)
    answer = world.nodes["b"].answer
    assert answer is not None
    lease = answer.leases["gate"]
    assert lease.outage_cause == "node a stopped renewing its lease"
    assert lease.outage_since_ns is not None
    assert not lease.is_outage_reported


def test_many_processes_share_a_file_and_no_epoch_is_given_twice(tmp_path):
    path = tmp_path / "leases" / "leases.sqlite"
    SqliteLeaseStore(path).update(lambda book: book.set_cameras(CAMERAS))
    epochs: list[tuple[str, int]] = []
    errors: list[Exception] = []

    def grant(name: str) -> None:
        store = SqliteLeaseStore(path)
        try:
            for number in range(10):
                session = f"{name}{number}"

                def take(book: LeaseBook, session: str = session) -> list[tuple[str, int]]:
                    assert book.join_node(name, session, START_NS)
                    answer = book.renew_node(name, session, START_NS, is_ready=True, revision=book.revision)
                    assert answer is not None
                    book.leave_node(name, session, START_NS)
                    return [(lease.camera, lease.epoch) for lease in answer.leases.values()]

                epochs.extend(store.update(take))
        except Exception as error:
            errors.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=grant, args=(name,)) for name in NODES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(epochs) == len(set(epochs)) == 3 * 10 * len(CAMERAS)


def test_a_configuration_seen_before_is_an_old_copy(tmp_path):
    store = SqliteLeaseStore(tmp_path / "leases.sqlite")
    assert store.read_config() is None
    assert store.offer_config("one", ["door"]).revision == 1
    assert store.offer_config("one", ["door"]).revision == 1
    assert store.offer_config("two", ["gate"]).revision == 2
    old = store.offer_config("one", ["door"])
    assert (old.revision, old.text, old.is_old_copy) == (2, "two", True)
    assert store.update(lambda book: {one.name: one.is_wanted for one in book.cameras.values()}) == {
        "door": False,
        "gate": True,
    }


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("kafka://host/topic", "write postgresql://HOST/DATABASE"),
        ("sqlite:", "sqlite:PATH"),
        ("postgresql://host", "database is missing"),
        ("leases.db", "cannot be used"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence(address, sentence):
    with pytest.raises(ConfigError, match=sentence):
        open_lease_store(address)


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(LeaseError, match="give a file on a local disk"):
        open_lease_store(f"sqlite:{tmp_path / 'folder'}").update(lambda book: None)
