"""A cluster in virtual time: the production core (membership, decide, control fold, reconcile) under crashes and stalls.

What is simulated is what surrounds the core: broker, leases, guardians, processes, delays. Each loop of a node is a generator
that yields `Sleep` or `Call`; nothing reads a clock or a global random source, so a seed is a history.

The broker may die (its key-value store with it), nodes may be killed, stopped in good order, or frozen (SIGSTOP) and wake up
again. A guardian is a process of its own: it goes on while its node is frozen, and ends the node's daemons at the lease's deadline.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final

import msgspec

from substrate.engine.api import KvEvent
from substrate.identity.keys import Keypair
from substrate.mesh.membership import (
    MARGIN_MS,
    RENEW_EVERY_MS,
    TTL_MS,
    Member,
    MembershipView,
    Running,
    encode_member,
    member_key,
)
from substrate.meshos.decide import Presence, World, decide
from substrate.meshos.decisions import ControlState, Key, fold_control, leader_of
from substrate.meshos.reconcile import Actual, Restart, Start, Stop, reconcile
from substrate.operator.state import LedgerState, Node
from substrate.wire import events
from substrate.wire.control import Assigned, TermOpened
from substrate.wire.errors import NetError
from substrate.wire.records import EMPTY, Head, Record
from substrate.wire.structs import Variant
from tests.meshos.worlds import sealed

START_MS: Final = 1_700_000_000_000
GRACE_MS: Final = 1500
KILL_MS: Final = MARGIN_MS - 500
"""The longest a guardian takes to kill everything."""


class Violation(AssertionError):
    """Something happened that must never happen."""


class Sleep(msgspec.Struct):
    """Continue after a while, or when one of the node's wake flags is raised."""

    ms: int
    wake: str = ""


class Call(msgspec.Struct):
    """Ask the broker; the answer, or the NetError, comes back after a while."""

    ask: Callable[[Broker], Any]


Loop = Generator[Sleep | Call, Any, None]


class Simulation:
    """One history. `trace` tells it in lines."""

    def __init__(self, seed: int, nodes: int | None = None) -> None:
        self.rng = random.Random(seed)
        self.now = START_MS
        self.trace: list[str] = []
        self.steps = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.broker = Broker(self)
        self.admin: list[tuple[events.Event, int]] = []
        self.processes: dict[Key, dict[int, int]] = {}  # instance -> {node id: epoch} of what really runs
        self.nodes = [SimNode(self, number) for number in range(nodes or self.rng.randint(3, 5))]
        self.keys = {node.id: node.keys.public_key for node in self.nodes}
        for node in self.nodes:
            node.start()

    def say(self, text: str) -> None:
        """Add a line to the story."""
        self.trace.append(f"{self.now - START_MS:>7} {text}")

    def at(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something after a while."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + max(0, delay_ms), self._order, action))

    def run(self, ms: int) -> None:
        """Let time pass."""
        end = self.now + ms
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            self.steps += 1
            action()
        self.now = end

    def delay(self) -> int:
        """How long a message takes: mostly very short, sometimes long."""
        return self.rng.randint(0, 3) if self.rng.random() < 0.97 else self.rng.randint(3, 1500)

    # what operators want

    def command(self, event: events.Event) -> None:
        """Commit an admin event."""
        self.admin.append((event, self.now))
        self.say(f"admin {len(self.admin)}: {event}")
        for node in self.nodes:
            node.hear_admin()

    # what really runs

    def begin(self, key: Key, node: SimNode, epoch: int) -> None:
        """A process starts. Two of one instance at a time are what all this is to prevent."""
        runs = self.processes.setdefault(key, {})
        runs[node.id] = epoch
        self.say(f"{node.name} runs {key} (epoch {epoch})")
        if len(runs) > 1:
            raise Violation(f"{key} runs on {sorted(runs)} at once")

    def end(self, key: Key, node: SimNode) -> None:
        """A process is dead."""
        if self.processes.get(key, {}).pop(node.id, None) is not None:
            self.say(f"{node.name} ends {key}")

    def fold_of(self) -> ControlState:
        """The decisions as a node without any lag would know them."""
        state = ControlState()
        for record in self.broker.control:
            fold_control(state, record, self.keys.get(leader_of(record)))
        return state


class Broker:
    """The engine: control is durable, key-value pairs live in memory."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.up = True
        self.generation = 1
        self.revision = 0
        self.kv: dict[str, tuple[bytes, int, int | None]] = {}
        self.control: list[Record] = []
        self._assigned: dict[Key, int] = {}

    def die(self, for_ms: int) -> None:
        """kill -9, and a new one after a while."""
        if not self.up:
            return
        self.sim.say(f"broker dies for {for_ms} ms")
        self.up = False
        self.generation += 1
        self.kv.clear()
        self.sim.at(for_ms, self._rise)

    def _rise(self) -> None:
        self.up = True
        self.sim.say("broker is back")
        for node in self.sim.nodes:
            self.sim.at(self.sim.rng.randint(0, 800), node.connect)

    @property
    def head(self) -> Head:
        """Of control."""
        return self.control[-1].head if self.control else EMPTY

    def get(self, key: str) -> tuple[bytes, int] | None:
        """(value, revision), or None."""
        found = self.kv.get(key)
        return found[:2] if found else None

    def put(self, key: str, value: bytes, expect: int, ttl_ms: int) -> int:
        """Compare and set; returns the new revision."""
        present = self.kv.get(key)
        revision = present[1] if present else 0
        if revision != expect:
            raise NetError("conflict", "another revision", details={"revision": revision})
        self.revision += 1
        mine = self.revision
        self.kv[key] = (value, mine, self.sim.now + ttl_ms)
        generation = self.generation
        self.sim.at(ttl_ms, lambda: self._expire(key, mine, generation))
        self._tell(KvEvent("put", key, value, mine))
        return mine

    def delete(self, key: str, expect: int | None = None) -> None:
        """Remove a key."""
        present = self.kv.get(key)
        if present and expect in (None, present[1]):
            del self.kv[key]
            self.revision += 1
            self._tell(KvEvent("delete", key, b"", self.revision))

    def _expire(self, key: str, revision: int, generation: int) -> None:
        present = self.kv.get(key)
        if self.generation == generation and present and present[1] == revision:
            del self.kv[key]
            self.revision += 1
            self._tell(KvEvent("expired", key, b"", self.revision))

    def _tell(self, event: KvEvent) -> None:
        if event.key.startswith("member/"):
            for node in self.sim.nodes:
                node.post(partial(node.feed, event))

    def append(self, records: list[Record], expect: Head) -> Head:
        """Compare and append to control."""
        if expect != self.head:
            raise NetError("conflict", "another head", details={"head": {"seq": self.head.seq}})
        self.control += records
        for node in self.sim.nodes:
            node.hear_control()
        return self.head


class Guardian:
    """Starts and ends a node's processes; ends them all when the lease's deadline passes."""

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.sim = node.sim
        self.deadline = 0
        self.alive: set[Key] = set()
        self._kills = 0

    def set_deadline(self, at: int) -> None:
        """Until when the processes may run."""
        self.deadline = at
        self.sim.at(at - self.sim.now, self._check)

    def _check(self) -> None:
        if self.sim.now >= self.deadline:
            self.kill_all()

    def kill_all(self) -> None:
        """SIGKILL, which takes its time."""
        for key in sorted(self.alive):
            self.sim.at(self.sim.rng.randint(0, KILL_MS), partial(self.ended, key))

    def begin(self, key: Key, epoch: int) -> bool:
        """Start a process; refused when the lease is over."""
        if self.sim.now >= self.deadline or key in self.alive:
            return False
        self.alive.add(key)
        self.sim.begin(key, self.node, epoch)
        return True

    def ended(self, key: Key) -> None:
        """A process is dead; its node hears of it when it can."""
        if key in self.alive:
            self.alive.discard(key)
            self.sim.end(key, self.node)
            incarnation = self.node.incarnation
            self.sim.at(self.sim.delay(), lambda: self.node.deliver(lambda: self.node.process_ended(key), incarnation))


class Instance(msgspec.Struct):
    """An instance as the node's supervisor has it."""

    epoch: int
    generation: int
    lifecycle: str = "starting"
    next: tuple[int, int] | None = None
    """(epoch, generation) to start when the present process has ended."""


class SimNode:
    """One node: its loops, its copies of the chains, its view of the others."""

    def __init__(self, sim: Simulation, number: int) -> None:
        self.sim = sim
        self.name = f"n{number}"
        self.keys = Keypair(bytes([number + 1]) * 32)
        self.id = self.keys.node_id
        self.guardian = Guardian(self)
        self.incarnation = 0
        self.up = self.frozen = False
        self.ledger = LedgerState(cluster_id=bytes(16))
        self.folded = 0
        self.control = ControlState()
        self._arrival = self._departure = 0

    # life

    def start(self) -> None:
        """Begin a process of this node; everything of an earlier one is dead."""
        if self.guardian.alive:
            self.sim.at(100, self.start)
            return
        for other in self.sim.nodes if hasattr(self.sim, "nodes") else []:
            self._admit(other)
        self.incarnation += 1
        self.up, self.frozen, self.stopping = True, False, False
        self.backlog: deque[Callable[[], None]] = deque()
        self.wakes: dict[str, Callable[[], None] | None] = {}
        self.raised: set[str] = set()
        self.members = MembershipView()
        self.instances: dict[Key, Instance] = {}
        self.restarted_seq = self.ledger.restart_all.get(self.id, 0)
        self.session = self.sim.rng.getrandbits(64)
        self.held = self.unclean = False
        self.renewing = True
        self.revision: int | None = None
        self.deadline = 0
        self.lead_revision: int | None = None
        self.term = 0
        self.sim.say(f"{self.name} starts, session {self.session}")
        for loop in (self._lease(), self._silence(), self._work(), self._campaign(), self._lead()):
            self._spawn(loop)
        self.connect()

    def _admit(self, other: SimNode) -> None:
        self.ledger.nodes.setdefault(other.id, Node(other.name, other.keys.public_key, 1))

    def crash(self, back_after_ms: int) -> None:
        """kill -9: the guardian sees the end of its pipe."""
        if self.up:
            self.sim.say(f"{self.name} is killed, back in {back_after_ms} ms")
            self._gone()
            self.guardian.set_deadline(0)
            self.sim.at(back_after_ms, self.start)

    def _gone(self) -> None:
        self.up = False
        self.incarnation += 1

    def freeze(self, for_ms: int) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        if self.up and not self.frozen:
            self.sim.say(f"{self.name} is frozen for {for_ms} ms")
            self.frozen = True
            incarnation = self.incarnation
            self.sim.at(for_ms, lambda: self._thaw(incarnation))

    def _thaw(self, incarnation: int) -> None:
        if self.incarnation == incarnation and self.frozen:
            self.sim.say(f"{self.name} wakes up")
            self.frozen = False
            while self.backlog and self.up and not self.frozen:
                self.backlog.popleft()()

    def leave(self, back_after_ms: int) -> None:
        """A stop in good order: daemons first, then the lease."""
        if self.up and not self.frozen and not self.stopping:
            self.sim.say(f"{self.name} is stopped, back in {back_after_ms} ms")
            self.stopping = True
            self._spawn(self._leave(back_after_ms))

    def _leave(self, back_after_ms: int) -> Loop:
        if self.lead_revision is not None:
            revision, self.lead_revision = self.lead_revision, None
            yield from self._quietly(Call(lambda broker: broker.delete("leader", revision)))
        for key in sorted(self.instances):
            self._stop(key)
        while self.guardian.alive:
            yield Sleep(20)
        self.held, self.renewing = False, False
        yield from self._quietly(Call(lambda broker: broker.delete(member_key(self.id))))
        self._gone()
        self.sim.say(f"{self.name} has stopped")
        self.sim.at(back_after_ms, self.start)

    def _quietly(self, call: Call) -> Loop:
        try:
            yield call
        except NetError:
            pass  # a goodbye that nobody hears: the lease runs out instead

    # scheduling

    def post(self, action: Callable[[], None], delay_ms: int | None = None) -> None:
        """Something arrives at this node, after what was sent before. A frozen node takes it when it wakes up, a dead one never."""
        delay = self.sim.delay() if delay_ms is None else delay_ms
        self._arrival = max(self._arrival, self.sim.now + delay)
        incarnation, generation = self.incarnation, self.sim.broker.generation
        self.sim.at(self._arrival - self.sim.now, lambda: self._arrive(action, incarnation, generation))

    def _arrive(self, action: Callable[[], None], incarnation: int, generation: int) -> None:
        if generation == self.sim.broker.generation:  # what a dead broker had sent is lost
            self.deliver(action, incarnation)

    def deliver(self, action: Callable[[], None], incarnation: int) -> None:
        """Do it in this process of the node: at once, or when it wakes up."""
        if self.incarnation != incarnation:
            return
        if self.frozen:
            self.backlog.append(lambda: self.deliver(action, incarnation))
        else:
            action()

    def _spawn(self, loop: Loop) -> None:
        self._advance(loop, None, self.incarnation)

    def _advance(self, loop: Loop, value: Any, incarnation: int) -> None:
        if self.incarnation != incarnation:
            return
        try:
            wish = loop.throw(value) if isinstance(value, NetError) else loop.send(value)
        except StopIteration:
            return
        if isinstance(wish, Sleep):
            self._sleep(loop, wish, incarnation)
        else:
            self._call(loop, wish, incarnation)

    def _sleep(self, loop: Loop, wish: Sleep, incarnation: int) -> None:
        done = False

        def go_on() -> None:
            nonlocal done
            if not done:
                done = True
                self.wakes[wish.wake] = None
                self.raised.discard(wish.wake)
                self._advance(loop, None, incarnation)

        self.sim.at(0 if wish.wake in self.raised else wish.ms, lambda: self.deliver(go_on, incarnation))
        if wish.wake:
            self.wakes[wish.wake] = go_on

    def wake(self, *names: str) -> None:
        """Something changed."""
        for name in names:
            self.raised.add(name)
            go_on = self.wakes.get(name)
            if go_on is not None:
                self.sim.at(0, partial(self.deliver, go_on, self.incarnation))

    def _call(self, loop: Loop, wish: Call, incarnation: int) -> None:
        broker = self.sim.broker
        generation = broker.generation

        def arrive() -> None:
            result: Any = NetError("engine-unavailable", "the broker is away")
            if broker.up and broker.generation == generation:
                try:
                    result = wish.ask(broker)
                except NetError as error:
                    result = error
            self._arrival = max(self._arrival, self.sim.now + self.sim.delay())  # answers keep the connection's order
            self.sim.at(self._arrival - self.sim.now, lambda: answer(result))

        def answer(result: Any) -> None:
            if broker.generation != generation:
                result = NetError("unknown-outcome", "the connection broke")
            self.deliver(lambda: self._advance(loop, result, incarnation), incarnation)

        self._departure = max(self._departure, self.sim.now + self.sim.delay())  # one connection, in order
        self.sim.at(self._departure - self.sim.now, arrive)

    # what arrives

    def connect(self) -> None:
        """Attach to the broker: present members, then what follows; the chains from where they were left."""
        broker = self.sim.broker
        if self.up and broker.up:
            self.post(lambda: self.feed(KvEvent("reset")))
            for key in sorted(broker.kv):
                if key.startswith("member/"):
                    value, revision, _ = broker.kv[key]
                    event = KvEvent("put", key, value, revision)
                    self.post(partial(self.feed, event))
            self.hear_control()
            self.hear_admin()

    def feed(self, event: KvEvent) -> None:
        """One event of the watch."""
        if self.members.feed(event, self.sim.now):
            self.wake("lead")

    def hear_control(self) -> None:
        """Control has grown to where it is now."""
        upto = len(self.sim.broker.control)
        self.post(lambda: self._fold_control(upto))

    def _fold_control(self, upto: int) -> None:
        fresh = self.sim.broker.control[self.control.head.seq : upto]
        for record in fresh:
            fold_control(self.control, record, self.sim.keys.get(leader_of(record)))
        if fresh:
            self.wake("lead", "work", "lease")

    def hear_admin(self) -> None:
        """The ledger has grown to where it is now."""
        upto = len(self.sim.admin)
        self.post(lambda: self._fold_admin(upto))

    def _fold_admin(self, upto: int) -> None:
        for node in self.sim.nodes:
            self._admit(node)
        for seq in range(self.folded + 1, upto + 1):
            event, at_ms = self.sim.admin[seq - 1]
            self.ledger.apply(event, seq, at_ms, bytes(16), bytes(32))
            self.ledger.head = Head(seq, bytes(32))
            self.folded = seq
        self.wake("lead", "work")

    # the lease, as substrate.node.lease keeps it

    def _lease(self) -> Loop:
        while self.renewing:
            if self.unclean:
                while self.guardian.alive or any(i.lifecycle != "stopped" for i in self.instances.values()):
                    yield Sleep(20)
                self.session = self.sim.rng.getrandbits(64)
                self.unclean = False
            pause = RENEW_EVERY_MS
            try:
                yield from self._renew() if self.held else self._acquire()
            except NetError:
                self.revision, pause = None, 200
            if self.held and self.sim.now >= self.deadline:
                self._lose()
            if not self.unclean:
                yield Sleep(pause, "lease")

    def _acquire(self) -> Loop:
        present = yield Call(lambda broker: broker.get(member_key(self.id)))
        yield from self._put(present[1] if present else 0)
        self.held = not self.stopping
        self.wake("lead", "work")

    def _renew(self) -> Loop:
        if self.revision is None:
            present = yield Call(lambda broker: broker.get(member_key(self.id)))
            if present is not None and msgspec.json.decode(present[0], type=Member).session != self.session:
                self._lose()
                return
            self.revision = present[1] if present else 0
        try:
            yield from self._put(self.revision)
        except NetError as error:
            if error.kind != "conflict":
                raise
            self.revision = None
            if error.details["revision"] != 0:
                return
            if self.sim.now < self.deadline:
                yield from self._put(0)
            else:
                self._lose()

    def _put(self, expect: int) -> Loop:
        if not self.renewing:
            raise NetError("engine-unavailable", "the node is stopping")
        sent = self.sim.now
        value = encode_member(self._member())
        self.revision = yield Call(lambda broker: broker.put(member_key(self.id), value, expect, TTL_MS))
        self.deadline = sent + TTL_MS
        self.guardian.set_deadline(self.deadline)

    def _member(self) -> Member:
        running = tuple(
            Running(key[0], key[1], instance.epoch, instance.lifecycle)
            for key, instance in sorted(self.instances.items())
        )
        return Member(
            self.id,
            self.name,
            self.session,
            self.keys.public_key,
            control_seq=self.control.head.seq,
            restarted_seq=self.restarted_seq,
            running=running,
            state="stopping" if self.stopping else "ready",
        )

    def _lose(self) -> None:
        self.sim.say(f"{self.name} loses its lease")
        self.held, self.unclean, self.revision = False, True, None
        self.guardian.set_deadline(self.sim.now)
        self.wake("work")

    # its daemons, as substrate.node.work keeps them

    def _work(self) -> Loop:
        while True:
            yield Sleep(1000, "work")
            for key in [k for k, i in self.instances.items() if i.lifecycle == "stopped"]:
                del self.instances[key]
            if not self.held or self.stopping:
                continue
            actual = {key: Actual(i.lifecycle, i.epoch, i.generation) for key, i in self.instances.items()}
            for action in reconcile(self.ledger, self.control, actual, self.id, self.session):
                match action:
                    case Start():
                        self._start(action.key, action.epoch, action.generation)
                    case Stop():
                        self._stop(action.key)
                    case Restart():
                        instance = self.instances[action.key]
                        self._start(action.key, instance.epoch, action.generation)
            self.restarted_seq = self.ledger.restart_all.get(self.id, 0)

    def _start(self, key: Key, epoch: int, generation: int) -> None:
        present = self.instances.get(key)
        if key in self.guardian.alive:
            self._stop(key)
            self.instances[key].next = (epoch, generation)
            return
        if present is not None and present.lifecycle == "starting":
            return
        self.instances[key] = Instance(epoch, generation)
        self.sim.at(self.sim.rng.randint(1, 60), lambda: self._spawned(key, epoch))

    def _spawned(self, key: Key, epoch: int) -> None:
        # The guardian does the work, so this happens although the node may be frozen by now.
        instance = self.instances.get(key)
        if not self.up or instance is None or instance.epoch != epoch or instance.lifecycle != "starting":
            return
        instance.lifecycle = "running" if self.guardian.begin(key, epoch) else "stopped"
        self.wake("lease")

    def _stop(self, key: Key) -> None:
        instance = self.instances[key]
        if key not in self.guardian.alive:
            instance.lifecycle = "stopped"
        elif instance.lifecycle != "stopping":
            instance.lifecycle = "stopping"
            self.sim.at(self.sim.rng.randint(0, GRACE_MS), lambda: self.guardian.ended(key))
        instance.next = None

    def process_ended(self, key: Key) -> None:
        """The guardian says that a process is dead."""
        instance = self.instances.get(key)
        if instance is not None and key not in self.guardian.alive:
            instance.lifecycle = "stopped"
            if instance.next is not None and self.held and not self.stopping:
                self._start(key, *instance.next)
            self.wake("work", "lease")

    # the view and the lead, as substrate.node.view and leadership keep them

    def _silence(self) -> Loop:
        while True:
            due = self.members.next_change_ms()
            yield Sleep(1000 if due is None else min(1000, max(10, due - self.sim.now)))
            if self.members.advance(self.sim.now):
                self.wake("lead")

    def world(self) -> World:
        """What this node knows."""
        patient = self.members.watched_ms(self.sim.now) >= TTL_MS + MARGIN_MS
        presences = {}
        for number, node in self.ledger.nodes.items():
            status = self.members.status(number, self.sim.now)
            if status is None:
                presences[number] = Presence(number, node.name, 0, "lost" if patient else "suspect")
                continue
            member = status.member
            running = frozenset((r.daemon_id, r.instance) for r in member.running if r.lifecycle != "stopped")
            presences[number] = Presence(
                number,
                member.name,
                member.session,
                status.state,
                running=running,
                control_seq=member.control_seq,
                restarted_seq=member.restarted_seq,
                accepting=member.state == "ready",
            )
        return World(self.ledger, self.control, presences, self.sim.now)

    @property
    def leading(self) -> bool:
        """Whether its term is the open one, as far as it knows."""
        state = self.control
        return self.lead_revision is not None and (state.leader, state.term) == (self.id, self.term)

    def _campaign(self) -> Loop:
        while True:
            try:
                if not self.held or self.stopping:
                    self.lead_revision = None
                elif self.leading:
                    yield from self._keep()
                else:
                    self.lead_revision = None
                    yield from self._take()
            except NetError as error:
                if error.kind in ("conflict", "unknown-outcome"):
                    self.lead_revision = None
            yield Sleep(1000)

    def _claim(self, expect: int) -> Call:
        value = f"{self.id}/{self.session}".encode()
        return Call(lambda broker: broker.put("leader", value, expect, TTL_MS))

    def _keep(self) -> Loop:
        assert self.lead_revision is not None
        try:
            self.lead_revision = yield self._claim(self.lead_revision)
        except NetError as error:
            if error.kind != "conflict" or error.details["revision"] != 0:
                raise
            self.lead_revision = yield self._claim(0)

    def _take(self) -> Loop:
        present = yield Call(lambda broker: broker.get("leader"))
        if present is not None and present[0] != f"{self.id}/{self.session}".encode():
            return
        revision = yield self._claim(present[1] if present else 0)
        for _ in range(20):
            term = self.control.term + 1
            try:
                yield from self._append(term, [TermOpened(self.session)])
            except NetError as error:
                if error.kind != "conflict":
                    raise
                yield from self._folded(error.details["head"]["seq"])
                continue
            self.term, self.lead_revision = term, revision
            self.sim.say(f"{self.name} leads, term {term}")
            self.wake("lead")
            return

    def _lead(self) -> Loop:
        while True:
            yield Sleep(500, "lead")
            try:
                while self.leading and not self.stopping and (found := decide(self.world())):
                    yield from self._append(self.term, found)
            except NetError as error:
                if error.kind == "conflict":
                    self.lead_revision = None

    def _append(self, term: int, found: list[Variant]) -> Loop:
        head = self.control.head
        records = sealed(self.keys, term, head, max(self.sim.now, self.control.at_ms), found)
        after = yield Call(lambda broker: broker.append(records, head))
        for event in found:
            if not isinstance(event, Assigned):
                self.sim.say(f"{self.name} decides {event}")
            else:
                self.sim.say(f"{self.name} assigns {event.daemon}/{event.instance} to {event.node} {event.session}")
        yield from self._folded(after.seq)

    def _folded(self, seq: int) -> Loop:
        limit = self.sim.now + 10_000
        while self.control.head.seq < seq:
            if self.sim.now > limit:
                raise NetError("wait-timeout", "control was not folded in time")
            yield Sleep(5)
