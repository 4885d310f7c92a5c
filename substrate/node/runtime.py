"""One node: every part made, connected, run and ended in order."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from typing import Any, Final

from substrate import __version__
from substrate.control.server import ControlServer, Limits
from substrate.engine.api import Engine
from substrate.engine.local import LocalEngine
from substrate.identity import ids
from substrate.mesh import PeerAddress, PeerInfo, PeerPool, PeerServer
from substrate.mesh.membership import PREFIX, Member, MembershipView
from substrate.mesh.probes import Probes
from substrate.mesh.proximity import Proximity
from substrate.meshos.control_copy import ControlCopy
from substrate.meshos.guardian_client import Event, GuardianClient, GuardianLost
from substrate.meshos.logs import LogStore
from substrate.meshos.supervision import Supervisor
from substrate.node import nodekey, notify
from substrate.node.admission import admit
from substrate.node.api import NodeApi
from substrate.node.api_logs import LogPeer
from substrate.node.enginewatch import EngineWatch
from substrate.node.follow import follow_control, follow_ledger
from substrate.node.leadership import Leadership
from substrate.node.lease import Lease
from substrate.node.lock import NodeLock
from substrate.node.settings import NodeSettings, make_private
from substrate.node.supervising import supervisor_settings
from substrate.node.view import ClusterView, monotonic_ms
from substrate.node.work import Work
from substrate.operator.copy import LedgerCopy
from substrate.operator.gateway import Gateway
from substrate.redex import Store
from substrate.wire.errors import NetError
from substrate.wire.times import now_ms

log = logging.getLogger("net.node")

ANNOUNCE_FOLD_S: Final = 0.2
KEEP_RUNNING: Final = frozenset(("ledger-tampered", "ledger-behind"))
"""Failures after which a node stops folding and leading but stays up to say so."""


class Runtime:
    """A running node. `start`, then wait for `stopped`, then `close`."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings.check()
        self.started_at_ms = now_ms()
        self.state = "starting"
        self.failure: NetError | None = None
        self.stopped = asyncio.Event()
        self.stop_reason = ""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.guardian: GuardianClient | None = None
        self._announcing: asyncio.TimerHandle | None = None

    # life

    async def start(self) -> None:
        """Bring the node up; raises what prevents it, after undoing what was begun."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        directory = self.settings.directory
        make_private(directory)
        self.lock = NodeLock.acquire(str(directory), self.settings.name)
        self.keypair = nodekey.load_or_create(directory)
        self.node_id = self.keypair.node_id
        self.engine: Engine = await LocalEngine.connect(self.settings.engine_directory)
        self.store = Store.open(directory / "ledger.db", on_fatal=self._store_failed)
        self.ledger = LedgerCopy(directory, self.store, self.keypair)
        self.control = ControlCopy(self.store, self.ledger.index, self._node_key)
        self.engine_watch = EngineWatch(self.engine)
        await self.engine_watch.look()
        self.gateway = Gateway(self.engine, self.ledger, self.keypair, now_ms, lambda: self.engine_watch.skew_ms)
        self._spawn("ledger", follow_ledger(self.engine, self.ledger, self._ledger_changed))
        self._spawn("gateway", self.gateway.run())
        await self._until_failed(admit(self))
        self.logs = LogStore.open(directory / "logs.db", on_fatal=self._store_failed)
        self._start_peers()
        await self.peers.start()
        self._spawn("control", follow_control(self.engine, self.control, self.ledger, self._control_changed))
        self.guardian = await GuardianClient.start(directory)
        self.guardian.subscribe(self._heard_guardian)
        self.supervisor = Supervisor(
            self.guardian,
            self.logs,
            now_ms,
            random.Random(),
            node=self.settings.name,
            settings=supervisor_settings(self.ledger.state.policy),
        )
        self.lease = Lease(
            self.engine,
            self.node_id,
            self.keypair.public_key,
            self._describe,
            self._set_deadline,
            self._until_empty,
            self._lease_changed,
        )
        self.leadership = Leadership(self.engine, self.keypair, self.control, self._session, self.view.world)
        self.work = Work(self.node_id, self.ledger, self.control, self.supervisor, self._session, self.lease.poke)
        self.state = "ready"
        self._spawn("probes", self.probes.run())
        self._spawn("proximity", self.proximity.run())
        self._spawn("members", self._watch_members())
        self._spawn("silence", self._watch_silence())
        self._spawn("lease", self.lease.run())
        self._spawn("work", self.work.run())
        self._spawn("campaign", self.leadership.campaign())
        self._spawn("decide", self.leadership.decide())
        self._spawn("engine", self.engine_watch.run())
        await self._until_failed(self.lease.acquired.wait())
        self.server = ControlServer(
            NodeApi(self), self.settings.control_socket, limits=Limits(heartbeat_s=self.settings.heartbeat_s)
        )
        await self.server.start()
        if notify.ready(f"node {self.settings.name} of cluster {self.settings.cluster}"):
            self._spawn("watchdog", self._feed_watchdog())
        self.logs.note(None, "info", f"node {self.settings.name} is ready")

    def _start_peers(self) -> None:
        cluster_id = self.ledger.state.cluster_id
        self.members = MembershipView()
        self.probes = Probes(str(self.settings.directory))
        self.pool = PeerPool(self.keypair, cluster_id, self._address)
        self.proximity = Proximity(self._ping, self.live_peers)
        self.view = ClusterView(self.node_id, self.ledger, self.control, self.members, self.proximity)
        self.peers = PeerServer(self.settings.peer_socket, self.keypair, cluster_id, self._authorize)
        answers = LogPeer(self)
        self.peers.handle("logs", answers.query)
        self.peers.handle_stream("logs.follow", answers.follow)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.state == "stopping":
            return
        error = task.exception()
        if error is None:
            return
        if isinstance(error, NetError):
            self.failure = self.failure or error
            log.error("%s stopped: %s: %s", task.get_name(), error.kind, error.message)
        else:
            self.failure = self.failure or NetError("internal", f"{task.get_name()} failed: {error!r}")
            log.error("%s failed", task.get_name(), exc_info=error)
        if self.failure.kind in KEEP_RUNNING and self.state == "ready":
            # It must not act on what it cannot follow: without a lease others take its daemons over.
            self.state = "failed"
            for name in ("campaign", "decide", "lease"):
                self._tasks[name].cancel()
            self._set_deadline(0)
        else:
            self.request_stop(f"{self.failure.kind}: {self.failure.message}")

    async def _until_failed(self, work: Coroutine[Any, Any, Any]) -> None:
        """Wait for a step of the start, unless a background task fails first."""
        step = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self.stopped.wait())
        try:
            await asyncio.wait({step, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                step.result()
            else:
                raise self.failure or NetError("interrupted", f"the node was stopped: {self.stop_reason}")
        finally:
            for future in (step, stopped):
                future.cancel()

    def request_stop(self, reason: str) -> None:
        """Begin a graceful stop."""
        if not self.stopped.is_set():
            log.info("stopping: %s", reason)
            self.stop_reason = reason
            self.stopped.set()

    async def close(self) -> None:
        """End everything in the order that lets others take over: daemons first, then the lease, then the rest."""
        was_ready, self.state = self.state == "ready", "stopping"
        notify.stopping()
        for name in ("campaign", "decide", "work"):
            await self._cancel(name)
        if hasattr(self, "leadership"):
            await self._quietly("resign", self.leadership.resign())
            self.lease.poke()
        if hasattr(self, "work"):
            await self.work.settle()
            await self.supervisor.close()
        await self._cancel("lease")
        if self.guardian is not None:
            await self.guardian.shutdown(0)
        if was_ready and hasattr(self, "lease"):
            await self._quietly("release", self.lease.release())
        if hasattr(self, "server"):
            await self.server.close()
        for name in list(self._tasks):
            await self._cancel(name)
        if hasattr(self, "peers"):
            await self.pool.close()
            await self.peers.close()
        if hasattr(self, "logs"):
            await self._quietly("logs", self.logs.close())
        if hasattr(self, "control") and self.control.failure is None:
            self.control.save()
        if hasattr(self, "ledger"):
            self.ledger.close()
        if hasattr(self, "store"):
            self.store.close()
        if hasattr(self, "engine"):
            await self.engine.close()
        if hasattr(self, "lock"):
            self.lock.release()

    async def _cancel(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _quietly(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """A step of the stop whose failure must not keep the rest from being ended."""
        try:
            async with asyncio.timeout(3.0):
                await work
        except (NetError, TimeoutError) as error:
            log.warning("while stopping, %s: %s", what, error)

    async def hasten(self) -> None:
        """A second signal: end the daemons without their grace."""
        if hasattr(self, "supervisor"):
            for report in self.supervisor.report():
                if report.lifecycle != "stopped":
                    await self.supervisor.stop(report.key, "hastened", grace_ms=0)

    # parts asking for one another

    def _node_key(self, node: int) -> bytes | None:
        entry = self.ledger.state.nodes.get(node)
        return entry.public_key if entry is not None else None

    def _authorize(self, public_key: bytes) -> PeerInfo | None:
        node = ids.node_id(public_key)
        entry = self.ledger.state.nodes.get(node)
        if entry is None or entry.removed or entry.public_key != public_key:
            return None
        return PeerInfo(node, entry.name, public_key)

    def _address(self, node: int) -> PeerAddress | None:
        status, entry = self.view.member(node), self.ledger.state.nodes.get(node)
        if status is None or entry is None or entry.removed:
            return None
        return PeerAddress(node, entry.name, entry.public_key, status.member.endpoints)

    async def _ping(self, node: int, timeout_ms: int) -> float:
        return await self.pool.ping(node, timeout_ms=timeout_ms)

    def live_peers(self) -> list[int]:
        """The other nodes that are alive, by id."""
        now = monotonic_ms()
        return sorted(
            status.member.node_id
            for status in self.members.members(now)
            if status.state == "alive" and status.member.node_id != self.node_id
        )

    def _session(self) -> int | None:
        return self.lease.session if self.lease.held else None

    def _describe(self, session: int) -> Member:
        return Member(
            node_id=self.node_id,
            name=self.settings.name,
            session=session,
            public_key=self.keypair.public_key,
            endpoints=(self.peers.endpoint,),
            labels=self.settings.all_labels(),
            load=self.probes.latest,
            admin_seq=self.ledger.head.seq,
            control_seq=self.control.head.seq,
            restarted_seq=self.work.restarted_seq,
            running=self.work.announced(),
            state=self.state,
            version=__version__,
            control_endpoint=f"unix:{self.settings.control_socket}",
            started_at_ms=self.started_at_ms,
        )

    def _set_deadline(self, deadline_ns: int) -> None:
        if self.guardian is not None and self.guardian.running:
            self.guardian.set_deadline(deadline_ns)

    async def _until_empty(self) -> None:
        while any(report.lifecycle != "stopped" for report in self.supervisor.report()):
            await asyncio.sleep(0.02)

    # events

    def _ledger_changed(self) -> None:
        if self.state == "ready":
            entry = self.ledger.state.nodes.get(self.node_id)
            if entry is not None and entry.removed:
                self.request_stop("this node was removed from the cluster")
            self.supervisor.configure(supervisor_settings(self.ledger.state.policy))
            self.leadership.wake()
            self.work.wake()
            if self._announcing is None:
                self._announcing = self._loop.call_later(ANNOUNCE_FOLD_S, self._announce_fold)

    def _announce_fold(self) -> None:
        """Tell the others how far the ledger is folded here: soon, but not for every record of a busy ledger."""
        self._announcing = None
        self.lease.poke()

    def _control_changed(self) -> None:
        if self.state == "ready":
            self._wake()

    def _lease_changed(self) -> None:
        self._wake()

    def _wake(self) -> None:
        self.leadership.wake()
        self.work.wake()
        self.lease.poke()

    def _heard_guardian(self, event: Event) -> None:
        if isinstance(event, GuardianLost) and self.state == "ready":
            log.error("the guardian is gone: %s", event.reason)
            self._spawn("guardian", self._replace_guardian())

    async def _replace_guardian(self) -> None:
        self.guardian = await GuardianClient.start(self.settings.directory)
        self.guardian.subscribe(self._heard_guardian)
        self.supervisor.attach(self.guardian)
        self.logs.note(None, "warn", "the guardian was lost and has been replaced; daemons start again")
        self._wake()

    def _store_failed(self, error: NetError) -> None:
        """Called in a thread of the store's: after a failed fsync nothing may be believed any more."""
        log.critical("the store failed: %s", error.message)
        self._loop.call_soon_threadsafe(self.request_stop, error.message)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._tasks["gateway"].get_loop()

    # watches

    async def _watch_members(self) -> None:
        watch = self.engine.kv_watch(PREFIX)
        try:
            async for event in watch:
                self._members_changed(self.members.feed(event, monotonic_ms()))
        finally:
            await watch.aclose()

    async def _watch_silence(self) -> None:
        """Let silence count: members become suspect and lost by time alone."""
        while True:
            due = self.members.next_change_ms()
            wait_s = 1.0 if due is None else min(1.0, max(0.01, (due - monotonic_ms()) / 1000))
            await asyncio.sleep(wait_s)
            self._members_changed(self.members.advance(monotonic_ms()))

    def _members_changed(self, changes: list[Any]) -> None:
        for change in changes:
            if change.kind in ("lost", "stopped", "new-session", "suspect"):
                log.info("node %s: %s", change.member.name, change.kind)
            if change.kind in ("lost", "stopped"):
                self.pool.drop(change.member.node_id)
        if changes:
            self.leadership.wake()

    async def _feed_watchdog(self) -> None:
        period = notify.watchdog_period_s()
        while period is not None:
            notify.watchdog()
            await asyncio.sleep(period)
