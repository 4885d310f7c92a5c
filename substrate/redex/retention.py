"""Retention: which records a sweep removes, and removing them without breaking the hash chain.

The hash and the running byte total of the last removed record stay in the chain's row, so verify starts from
there and sizes stay exact. Records go in bounded steps, each its own transaction, so appends get their turns between them.
"""

from __future__ import annotations

from typing import Final

from substrate.redex.chainstate import Chain, Execute

STEP_RECORDS: Final = 2048

_FIRST_YOUNG: Final = "SELECT key FROM records WHERE key BETWEEN ? AND ? AND at_ms >= ? ORDER BY key LIMIT 1"


def cut_point(execute: Execute, chain: Chain, now_ms: int) -> int:
    """The last seq to remove in this step: the strictest limit's, at most STEP_RECORDS further than the last cut."""
    limits = chain.retention
    end = min(chain.base_seq + STEP_RECORDS, chain.head.seq)
    cut = chain.base_seq
    if limits.max_records is not None:
        cut = max(cut, chain.head.seq - limits.max_records)
    if limits.max_bytes is not None:
        cut = max(cut, _byte_cut(execute, chain, limits.max_bytes))
    if limits.max_age_ms is not None and cut < end:
        span = (chain.key0 + cut + 1, chain.key0 + end)
        row = execute(_FIRST_YOUNG, (*span, max(0, now_ms - limits.max_age_ms))).fetchone()
        cut = end if row is None else row[0] - chain.key0 - 1
    return min(cut, end)


def _byte_cut(execute: Execute, chain: Chain, max_bytes: int) -> int:
    """The smallest seq whose removal, with all before it, leaves at most `max_bytes`: a binary search."""
    low, high = chain.base_seq, chain.head.seq
    while low < high:
        middle = (low + high) // 2
        if chain.end_bytes - chain.point(execute, middle)[1] <= max_bytes:
            high = middle
        else:
            low = middle + 1
    return low


def remove_through(execute: Execute, chain: Chain, seq: int) -> int:
    """Remove the records up to `seq`, inside a transaction; return how many there were."""
    if seq <= chain.base_seq:
        return 0
    last_hash, end_bytes = chain.point(execute, seq)
    execute("DELETE FROM records WHERE key BETWEEN ? AND ?", (chain.key0 + chain.base_seq + 1, chain.key0 + seq))
    execute(
        "UPDATE chains SET base_seq=?, base_hash=?, base_bytes=? WHERE name=?", (seq, last_hash, end_bytes, chain.name)
    )
    return seq - chain.base_seq
