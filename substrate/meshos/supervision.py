"""Keeps the daemon instances assigned to this node running: start, watch, restart by the rules, stop.

One task per instance walks through its life in order, so requests about one instance never overlap; instances
do not wait for each other. Real processes belong to the guardian; what they write goes to the log sink.
The supervisor starts nothing on its own after a fence or the loss of its guardian: that the node holds a lease
again, and is still meant to run an instance, is for its caller to know.
Source: reference/operator-plane.md 4.6; architecture, "Real effects".
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from substrate.meshos.guardian_client import Event, Exited, Fenced, GuardianClient, GuardianLost
from substrate.meshos.instance import Instance
from substrate.meshos.instance_types import InstanceKey, InstanceReport, InstanceSpec, LogSink, SupervisorSettings
from substrate.wire.errors import NetError

MAX_INSTANCES: Final = 1024


class Supervisor:
    """All instances of one node. Use on one event loop.

    `now_ms` is the wall clock, for what is shown; pauses are measured on a monotonic one. `rng` spreads the
    restarts of instances that failed together. `node` is the node's name, told to daemons as NET_NODE.
    """

    def __init__(
        self,
        guardian: GuardianClient,
        log_sink: LogSink,
        now_ms: Callable[[], int],
        rng: random.Random | None = None,
        *,
        node: str = "",
        settings: SupervisorSettings | None = None,
    ) -> None:
        self._log_sink = log_sink
        self._now_ms = now_ms
        self._rng = rng or random.Random()
        self._node = node
        self._settings = settings or SupervisorSettings()
        self._instances: dict[InstanceKey, Instance] = {}
        self._by_guardian_key: dict[str, Instance] = {}
        self.on_change: Callable[[InstanceReport], None] | None = None
        """Called on the loop whenever an instance's lifecycle changes. It must not block and not raise."""
        self._guardian = guardian
        guardian.subscribe(self._heard)

    def attach(self, guardian: GuardianClient) -> None:
        """Go on with a new guardian after the old one was lost. Nothing is started by this."""
        self._guardian = guardian
        guardian.subscribe(self._heard)

    def configure(self, settings: SupervisorSettings) -> None:
        """Go by other times from now on, pauses under way excepted."""
        if settings != self._settings:
            self._settings = settings
            for instance in self._instances.values():
                instance.configure(settings)

    def start(self, spec: InstanceSpec) -> None:
        """Have the instance run as `spec` says, from the next free moment on; progress shows in `report`.

        Nothing happens when it runs so already, or has ended by itself and its restart mode leaves it at that;
        one that runs otherwise (another epoch, another command) is stopped first. Raises `overloaded` over the
        limit of instances, or of requests waiting for this one.
        """
        instance = self._instances.get(spec.key)
        if instance is None:
            if len(self._instances) >= MAX_INSTANCES:
                raise NetError("overloaded", f"a node runs at most {MAX_INSTANCES} daemon instances")
            instance = Instance(
                spec, lambda: self._guardian, self._log_sink, self._now_ms, self._rng, self._node, self._settings
            )
            instance.on_change = self._changed
            self._instances[spec.key] = instance
            self._by_guardian_key[instance.guardian_key] = instance
        instance.request_start(spec)

    async def stop(self, key: InstanceKey, reason: str, *, grace_ms: int | None = None) -> None:
        """Stop the instance (SIGTERM, grace, SIGKILL); returns when no process of it is left. Cancels a back-off.

        `grace_ms` takes the place of the spec's, and shortens that of a stop under way. One that is stopped
        keeps its first reason. Raises `daemon-not-found`.
        """
        await self._instance(key).request_stop(reason, grace_ms)

    async def restart(self, key: InstanceKey) -> None:
        """Stop the instance and start it again at once, also out of a back-off; returns when the old run is over.

        One that is stopped is started as it was last. Raises `daemon-not-found`.
        """
        await self._instance(key).request_restart()

    def reset_backoff(self, key: InstanceKey) -> None:
        """Forget the instance's crashes; one that waits in a pause starts at once. Raises `daemon-not-found`."""
        self._instance(key).reset_backoff()

    def forget(self, key: InstanceKey) -> None:
        """Leave a stopped instance out of `report` from now on. Raises `conflict` while it is not stopped."""
        instance = self._instance(key)
        if not instance.idle:
            raise NetError("conflict", f"{instance.guardian_key} is {instance.lifecycle}, not stopped")
        del self._instances[key]
        del self._by_guardian_key[instance.guardian_key]

    def report(self) -> list[InstanceReport]:
        """Every instance known, by daemon id and index."""
        return [self._instances[key].report() for key in sorted(self._instances)]

    async def stop_all(self, reason: str) -> None:
        """Stop every instance, all at the same time; returns when no process is left."""
        await asyncio.gather(*(instance.request_stop(reason) for instance in self._instances.values()))

    async def close(self) -> None:
        """`stop_all`, then end the tasks of the instances."""
        await self.stop_all("supervisor-closed")
        await asyncio.gather(*(instance.close() for instance in self._instances.values()))

    def _instance(self, key: InstanceKey) -> Instance:
        instance = self._instances.get(key)
        if instance is None:
            raise NetError(
                "daemon-not-found",
                f"this node has no instance {key[1]} of daemon {key[0]}",
                details={"daemon_id": str(key[0]), "instance": key[1]},
            )
        return instance

    def _changed(self, instance: Instance) -> None:
        if self.on_change is not None:
            self.on_change(instance.report())

    def _heard(self, event: Event) -> None:
        match event:
            case Exited():
                if instance := self._by_guardian_key.get(event.key):
                    instance.exited(event)
            case Fenced():
                for instance in self._instances.values():
                    instance.end("fenced")
            case GuardianLost():
                for instance in self._instances.values():
                    instance.end("guardian-lost")
            case _:  # Stuck: its Exited is still to come, and until then the instance is stopping
                self._log_sink.note(None, "error", f"processes do not die: {event.pids}")
