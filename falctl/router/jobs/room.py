"""
How the store of queued jobs keeps its bounds: what ended leaves after a while, or early when room is wanted.

Not while its webhook is to be delivered, whatever the bounds say: then submissions are refused. A webhook is given up
after a day at the latest.
"""

from __future__ import annotations

from typing import Final

from falctl.router.jobs import rows
from falctl.router.jobs.writer import Transaction

SWEEP_JOBS: Final = 256
"""Deleted in one write: who submits meanwhile waits for that."""

BRIEF_S: Final = 60.0
"""
How long a job that is kept briefly (X-Fal-Store-IO: 0) stays once somebody has had its result.

Not gone at once: a client whose connection broke asks again, and so does one that reads the status afterwards.
"""


def make_room(transaction: Transaction, wanted: int, *, max_bytes: int, spare: int = 0) -> bool:
    """Delete ended jobs, the oldest first, until *wanted* bytes fit; return whether they do. Never deletes *spare*."""
    connection = transaction.connection
    while rows.used_bytes(connection) + wanted > max_bytes:
        number = rows.oldest_ended(connection)
        if number is None or number == spare:
            return False
        transaction.doomed += rows.delete_job(connection, number)
    return True


def delete_ended(transaction: Transaction, *, now: float, keep_s: float) -> int:
    """
    Delete up to `SWEEP_JOBS` jobs that ended more than *keep_s* ago or were to leave by *now*; return how many.

    One whose webhook is still to be delivered stays.
    """
    values = (now - keep_s, now, SWEEP_JOBS)
    found = transaction.connection.execute(rows.SELECT_LEAVING, values).fetchall()
    for (number,) in found:
        transaction.doomed += rows.delete_job(transaction.connection, number)
    return len(found)
