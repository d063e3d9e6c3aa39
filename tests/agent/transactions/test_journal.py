"""What the journal forgets, and what it must not."""

import os
import time
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from agent.transactions.journal import Begin, Ended, Journal
from agent.wire.base import utc_now
from agent.wire.transaction import SnapshotRequest, Transaction

MONTH_S, DAY_S = 30 * 86_400.0, 86_400.0


def ended(journal: Journal, directory: Path, ago_s: float) -> Path:
    """Write a transaction that ended so long ago."""
    view = msgspec.structs.replace(Transaction.example(), id=uuid4(), started_at=utc_now() - timedelta(seconds=ago_s))
    journal.append(view.id, Begin(transaction=view, request=SnapshotRequest(vm=view.vm, snapshot=uuid4())))
    journal.append(view.id, Ended(transaction=msgspec.structs.replace(view, state="committed", ended_at=utc_now())))
    path = directory / f"{view.id}.jsonl"
    os.utime(path, (time.time() - ago_s,) * 2)
    return path


def shift(directory: Path, by_s: float) -> None:
    """Date every file so much earlier, as they look to a clock that is ahead by this."""
    for path in directory.iterdir():
        os.utime(path, (path.stat().st_mtime - by_s,) * 2)


def test_outcomes_are_forgotten_after_their_time_but_for_the_last_hundred(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    old = [ended(journal, tmp_path, MONTH_S + DAY_S + number) for number in range(3)]
    young = [ended(journal, tmp_path, DAY_S + number) for number in range(98)]
    journal.prune(MONTH_S)
    assert set(tmp_path.iterdir()) == {*old[:2], *young}
    ended(journal, tmp_path, 0)
    journal.prune(MONTH_S)
    assert not old[1].exists()


@pytest.mark.case("F5")
def test_a_clock_that_is_years_ahead_makes_no_outcome_old(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    files = {ended(journal, tmp_path, number * DAY_S / 5) for number in range(140)}
    shift(tmp_path, 10 * 365 * DAY_S)
    journal.prune(MONTH_S)
    assert set(tmp_path.iterdir()) == files


@pytest.mark.case("F5")
def test_what_a_clock_that_was_ahead_has_dated_makes_no_other_outcome_old(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    files = {ended(journal, tmp_path, number * DAY_S / 5) for number in range(140)}
    files.add(ended(journal, tmp_path, -3650 * DAY_S))
    journal.prune(MONTH_S)
    assert set(tmp_path.iterdir()) == files
