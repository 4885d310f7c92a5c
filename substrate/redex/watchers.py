"""Who is told of commits: tails, and callbacks. Only the leader notifies, so all hear of commits in their order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from substrate.wire.records import Head

if TYPE_CHECKING:
    from substrate.redex.tail import Tail

_log = logging.getLogger(__name__)

Callback = Callable[[str, Head], None]


class Watchers:
    """The tails and callbacks of a store. Lists are replaced, never changed, so notifying needs no lock."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._tails: dict[str, tuple[Tail, ...]] = {}
        self._callbacks: tuple[tuple[str | None, Callback], ...] = ()

    def notify(self, committed: Sequence[tuple[str, Head]]) -> None:
        """Tell of new heads."""
        for chain, head in committed:
            for tail in self._tails.get(chain, ()):
                tail.wake()
            for wanted, callback in self._callbacks:
                if wanted is None or wanted == chain:
                    self._call(callback, chain, head)

    @staticmethod
    def _call(callback: Callback, chain: str, head: Head) -> None:
        try:
            callback(chain, head)
        except Exception:  # the records are durable: the appender must hear so, and the other watchers too
            _log.exception("a callback on commits of chain %s failed", chain)

    def add(self, callback: Callback, chain: str | None) -> Callable[[], None]:
        """Register a callback; returns how to remove it."""
        item = (chain, callback)
        with self._mutex:
            self._callbacks = (*self._callbacks, item)

        def remove() -> None:
            with self._mutex:
                self._callbacks = tuple(other for other in self._callbacks if other is not item)

        return remove

    def add_tail(self, tail: Tail) -> None:
        """Register a tail of its chain."""
        with self._mutex:
            self._tails[tail.chain] = (*self._tails.get(tail.chain, ()), tail)

    def remove_tail(self, tail: Tail) -> None:
        """Forget a tail; fine if it is forgotten already."""
        with self._mutex:
            rest = tuple(other for other in self._tails.get(tail.chain, ()) if other is not tail)
            if rest:
                self._tails[tail.chain] = rest
            else:
                self._tails.pop(tail.chain, None)

    def end(self, reason: str) -> None:
        """End every tail."""
        with self._mutex:
            tails = [tail for of_chain in self._tails.values() for tail in of_chain]
        for tail in tails:
            tail.end(reason)
