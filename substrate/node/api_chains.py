"""The control API's part of chains: what the engine holds, appended to and read through the attached node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from substrate.control.api import Request
from substrate.control.payloads import payloads_of, record_row
from substrate.control.stream import Lagged
from substrate.engine.api import ChainInfo
from substrate.engine.api import Lagged as EngineLagged
from substrate.operator.ledger import RESERVED_CHAINS
from substrate.wire.errors import NetError
from substrate.wire.ids import match_reference
from substrate.wire.records import EMPTY, Head, Record, check_follows
from substrate.wire.times import iso

if TYPE_CHECKING:
    from substrate.node.runtime import Runtime

VERIFY_PAGE: Final = 1000


class ChainApi:
    """Data writes need the socket's uid only; the ledger and control are written by commits and by the leader."""

    runtime: Runtime

    def _chain(self, reference: str) -> str:
        """The name of the chain meant: `admin`, `control`, or a created data chain by name, prefix or id."""
        if reference in RESERVED_CHAINS:
            return reference
        state = self.runtime.ledger.state
        return state.chains[match_reference("chain", reference, state.chain_names())].name

    async def _infos(self) -> dict[str, ChainInfo]:
        return {info.name: info for info in await self.runtime.engine.chains()}

    def _row(self, name: str, info: ChainInfo | None) -> dict[str, Any]:
        state = self.runtime.ledger.state
        chain_id = state.chain_id(name)
        created = state.chains.get(chain_id)
        return {
            "name": name,
            "chain_id": str(chain_id),
            "first_seq": info.first_seq if info else 1,
            "head_seq": info.head.seq if info else 0,
            "head_hash": (info.head if info else EMPTY).hash.hex(),
            "records": info.records if info else 0,
            "size_bytes": info.bytes if info else 0,
            "kind": name if name in RESERVED_CHAINS else "data",
            "desired": created.replicas if created else None,
            "holders": [],
            "leader": None,
            "created_at": iso(created.created_at_ms) if created else None,
        }

    async def chains(self, request: Request) -> Any:
        """Chains, by name."""
        infos = await self._infos()
        names = RESERVED_CHAINS | set(self.runtime.ledger.state.chain_names().values())
        return [self._row(name, infos.get(name)) for name in sorted(names)]

    async def chain(self, request: Request) -> Any:
        """One chain."""
        name = self._chain(request.params["ref"])
        return self._row(name, (await self._infos()).get(name))

    async def chain_append(self, request: Request) -> Any:
        """Append records to a data chain, all or none."""
        name, body = self._chain(request.params["ref"]), request.body
        if name in RESERVED_CHAINS:
            raise NetError(
                "not-authorized",
                f"the chain {name!r} is written by the cluster itself",
                "create a chain of your own: net chain create NAME",
            )
        payloads = payloads_of(body)
        engine = self.runtime.engine
        entry_id = bytes.fromhex(body.entry_id) if body.entry_id else None
        expect: Head | None = None
        if body.expect_seq is not None:
            expect = await self._head_at(name, body.expect_seq)
        appended = await engine.append(name, payloads, expect=expect, entry_id=entry_id, create=True)
        return {
            "chain": name,
            "first_seq": appended.first_seq,
            "head_seq": appended.head.seq,
            "head_hash": appended.head.hash.hex(),
            "count": len(payloads),
            "duplicate": appended.duplicate,
        }

    async def _head_at(self, name: str, seq: int) -> Head:
        """The head with that seq, to be expected; a seq that is not the head now is told by the engine as `conflict`."""
        head = await self.runtime.engine.head(name)
        return head if head.seq == seq else Head(seq, bytes(32))

    async def chain_records(self, request: Request) -> Any:
        """Records after `since`, or the last `tail`; with follow, those to come too."""
        name, query = self._chain(request.params["ref"]), request.query
        since = query.since or 0
        if query.tail is not None:
            since = max(0, (await self.runtime.engine.head(name)).seq - query.tail)
        elif query.follow and query.since is None:
            since = (await self.runtime.engine.head(name)).seq
        if query.follow:
            return self._tail(name, since)
        records = await self.runtime.engine.read(name, since + 1, limit=query.limit)
        return [record_row(record) for record in records]

    async def _tail(self, name: str, since: int) -> AsyncIterator[Any]:
        tail = self.runtime.engine.tail(name, since + 1)
        try:
            async for batch in tail:
                if isinstance(batch, EngineLagged):
                    yield Lagged(batch.from_seq, batch.to_seq)
                else:
                    yield [record_row(record) for record in batch]
        finally:
            await tail.aclose()

    async def chain_verify(self, request: Request) -> Any:
        """Read a chain from its first record and recompute every hash."""
        name = self._chain(request.params["ref"])
        engine = self.runtime.engine
        target = await engine.head(name)
        head: Head | None = None
        records = 0
        while head is None or head.seq < target.seq:
            page: list[Record] = await engine.read(name, head.seq + 1 if head else 1, limit=VERIFY_PAGE)
            if not page:
                break
            if head is None:  # what retention removed is known by the first record's prev_hash alone
                head = Head(page[0].seq - 1, page[0].prev_hash)
            head = check_follows(name, head, page)
            records += len(page)
        if target.seq and (head is None or head.seq < target.seq):
            missing = (head.seq if head else 0) + 1
            raise NetError(
                "corrupt-store", f"chain {name!r}: record {missing} is missing", details={"chain": name, "seq": missing}
            )
        head = head or EMPTY
        return {"ok": True, "chain": name, "records": records, "head_seq": head.seq, "head_hash": head.hash.hex()}
