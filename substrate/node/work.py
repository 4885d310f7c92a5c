"""A node's own daemons: carry out what `reconcile` says, through the supervisor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from substrate.mesh import membership
from substrate.meshos.control_copy import ControlCopy
from substrate.meshos.decisions import Key
from substrate.meshos.instance_types import InstanceReport, InstanceSpec
from substrate.meshos.reconcile import Action, Actual, Restart, Start, Stop, reconcile
from substrate.meshos.supervision import Supervisor
from substrate.operator.copy import LedgerCopy
from substrate.wire.errors import NetError

log = logging.getLogger("net.node")

REST_S: Final = 0.01
"""Between two passes: many changes at once are looked at once."""
TICK_S: Final = 1.0
RESTART_LIMIT_S: Final = 30.0
"""How long restart-all waits for one instance to run again before it goes on to the next."""


class Work:
    """The instances assigned to this node. `session()` is the lease's session, or None without a lease."""

    def __init__(
        self,
        node_id: int,
        ledger: LedgerCopy,
        control: ControlCopy,
        supervisor: Supervisor,
        session: Callable[[], int | None],
        changed: Callable[[], None],
    ) -> None:
        self._node_id = node_id
        self._ledger = ledger
        self._control = control
        self._supervisor = supervisor
        self._session = session
        self._changed = changed
        self._wake = asyncio.Event()
        self._generations: dict[Key, int] = {}
        self._busy: dict[Key, asyncio.Task[None]] = {}
        self._restarting: asyncio.Task[None] | None = None
        # What a restart-all before this process asked for is done: every daemon died with the process before.
        self.restarted_seq = ledger.state.restart_all.get(node_id, 0)
        supervisor.on_change = self._heard

    def wake(self) -> None:
        """Something changed; compare again."""
        self._wake.set()

    def _heard(self, report: InstanceReport) -> None:
        self._wake.set()
        self._changed()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass  # a look now and then costs little and mends what a missed wake would leave
            self._wake.clear()
            self._pass()
            await asyncio.sleep(REST_S)

    def _pass(self) -> None:
        self._forget_idle()
        session = self._session()
        if session is None:
            return  # without a lease nothing may start, and the guardian ends what runs
        actual = {
            report.key: Actual(
                "stopping" if report.key in self._busy else report.lifecycle,
                report.epoch,
                self._generations.get(report.key, 0),
            )
            for report in self._supervisor.report()
        }
        for action in reconcile(self._ledger.state, self._control.state, actual, self._node_id, session):
            self._execute(action)
        self._restart_all_if_asked()

    def _execute(self, action: Action) -> None:
        match action:
            case Start(key, spec, epoch, generation):
                if key in self._busy:
                    return  # being stopped; the next pass finds it stopped
                self._generations[key] = generation
                self._supervisor.start(
                    InstanceSpec(
                        key=key,
                        name=spec.name,
                        epoch=epoch,
                        argv=spec.command,
                        env=dict(spec.env),
                        cwd=spec.cwd,
                        grace_ms=spec.grace_ms,
                        restart=spec.restart,  # type: ignore[arg-type]  # checked by DaemonSpec.check
                    )
                )
            case Stop(key, reason):
                self._begin(key, self._supervisor.stop(key, reason))
            case Restart(key, generation):
                self._generations[key] = generation
                self._begin(key, self._supervisor.restart(key))

    def _begin(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        if key in self._busy:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._busy[key] = task
        task.add_done_callback(lambda done: self._finished(key, done))

    def _finished(self, key: Key, task: asyncio.Task[None]) -> None:
        self._busy.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("instance %s: %s", key, error)
        self._wake.set()
        self._changed()

    def _forget_idle(self) -> None:
        """Leave out instances that are stopped and not this node's any more."""
        session = self._session()
        for report in self._supervisor.report():
            assignment = self._control.state.assignments.get(report.key)
            ours = (
                assignment is not None
                and assignment.node == self._node_id
                and assignment.session == session
                and assignment.state == "assigned"
            )
            orphan = report.reason in ("guardian-lost", "fenced")
            if report.lifecycle == "stopped" and report.key not in self._busy and (orphan or not ours):
                try:
                    self._supervisor.forget(report.key)
                except NetError:
                    continue  # it has been asked for something meanwhile; the next pass looks again
                self._generations.pop(report.key, None)

    def _restart_all_if_asked(self) -> None:
        seq = self._ledger.state.restart_all.get(self._node_id, 0)
        if seq > self.restarted_seq and (self._restarting is None or self._restarting.done()):
            self._restarting = asyncio.get_running_loop().create_task(self._restart_all(seq))
            self._restarting.add_done_callback(self._restart_all_ended)

    def _restart_all_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("restart-all-daemons: %s", error)

    async def _restart_all(self, seq: int) -> None:
        """One by one: the next instance is restarted when the one before runs again."""
        for key in [report.key for report in self._supervisor.report() if report.lifecycle != "stopped"]:
            try:
                await self._supervisor.restart(key)
                async with asyncio.timeout(RESTART_LIMIT_S):
                    while self._lifecycle(key) in ("starting", "stopping"):
                        self._wake.set()
                        await asyncio.sleep(0.02)
            except (TimeoutError, NetError) as error:
                log.warning("restart-all-daemons: instance %s: %s", key, error)
        self.restarted_seq = seq
        self._changed()

    def _lifecycle(self, key: Key) -> str:
        return next((report.lifecycle for report in self._supervisor.report() if report.key == key), "stopped")

    def announced(self) -> tuple[membership.Running, ...]:
        """The instances as membership tells the other nodes."""
        return tuple(_announce(report) for report in self._supervisor.report())

    async def settle(self) -> None:
        """Wait for stops and restarts under way."""
        pending = [*self._busy.values(), *([self._restarting] if self._restarting else [])]
        if self._restarting is not None:
            self._restarting.cancel()
        if pending:
            await asyncio.wait(pending)


def _announce(report: InstanceReport) -> membership.Running:
    last = report.last_exit
    return membership.Running(
        daemon_id=report.key[0],
        instance=report.key[1],
        epoch=report.epoch,
        lifecycle=report.lifecycle,
        restarts=report.restarts,
        pid=report.pid,
        since_ms=report.started_at_ms,
        reason=report.reason,
        last_exit=None if last is None else membership.LastExit(last.at_ms, last.code, last.signal),
        next_start_ms=report.next_start_ms,
    )
