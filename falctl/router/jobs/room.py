"""How the store of queued jobs keeps its bounds: what ended leaves after a while, or early when room is wanted."""

from __future__ import annotations

from typing import Final

from falctl.router.jobs import rows
from falctl.router.jobs.writer import Transaction

SWEEP_JOBS: Final = 256
"""Deleted in one write: who submits meanwhile waits for that."""


def make_room(transaction: Transaction, wanted: int, *, max_bytes: int, spare: int = 0) -> bool:
    """Delete ended jobs, the oldest first, until *wanted* bytes fit; return whether they do. Never deletes *spare*."""
    connection = transaction.connection
    while rows.used_bytes(connection) + wanted > max_bytes:
        number = rows.oldest_ended(connection)
        if number is None or number == spare:
            return False
        transaction.doomed += rows.delete_job(connection, number)
    return True


def delete_ended(transaction: Transaction, *, before: float) -> int:
    """Delete up to `SWEEP_JOBS` jobs that ended before that instant, the oldest first; return how many."""
    found = transaction.connection.execute(
        "SELECT number FROM jobs WHERE ended_at < ? ORDER BY ended_at LIMIT ?", (before, SWEEP_JOBS)
    ).fetchall()
    for (number,) in found:
        transaction.doomed += rows.delete_job(transaction.connection, number)
    return len(found)
