"""The event log and the hook's notes while calls fail: ``python -m tests.integration.scarce_events DIRECTORY STEP``.

Run it with the environment of ``faulty``. Notes are drained into a log of small segments and an event of the agent's
own is added while one call fails, alone or with all later ones; then the same log and spool go on, and a log that is
opened anew must tell the same. Prints one JSON line with how many calls failed, by group.
"""

import errno
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from agent.host.event_log import EventLog
from agent.host.spool import Spool
from agent.web.errors import Error
from tests.agent.host.test_spool import left, note, reasons
from tests.integration.faulty import Calls, Page

FAULTS = {"io-errors": (Calls.CHANGES, errno.EIO), "full": (Calls.CHANGES, errno.ENOSPC)}
NOTES = 4


def opened(state: Path) -> EventLog:
    return EventLog(state, segment_bytes=500, segments_kept=50)


def work(state: Path, log: EventLog) -> Iterator[str]:
    """Do all there is to do, going on behind what fails; yield what failed."""
    steps: list[Callable[[], object]] = [
        lambda: list(Spool(state).drain(log)),
        lambda: log.append("host.link", "network", data={"reason": "own"}),
    ]
    for step in steps:
        try:
            step()
        except Error as err:
            yield err.code


def trial(state: Path, page: Page, fault: str, at: int, *, lasting: bool) -> int:
    """Let call number ``at`` fail and look what became of it; return how many calls there were."""
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(mode=0o700)
    for number in range(1, NOTES + 1):
        note(state, number, reason=str(number))
    (state / "spool" / "junk").touch()
    calls, error = FAULTS[fault]
    with closing(opened(state)) as log:
        page.arm(state, at, lasting=lasting, calls=calls, error=error)
        failed = list(work(state, log))
        made = page.disarm()
        told = f"{fault} {at}{' and later' if lasting else ''}: {page.failed}: {failed}"
        assert set(failed) <= {"storage-failed", "no-space"}, told
        assert list(work(state, log)) == [], told
        seen = [one for one in reasons(log) if one.isdigit()]
        assert seen == [str(number) for number in range(1, NOTES + 1)], told
        assert 1 <= reasons(log).count("own") <= 2, told
        assert left(state) == [], told
        events = log.read(0, 1000).items
        assert [one.seq for one in events] == list(range(1, len(events) + 1)), told
    with closing(opened(state)) as again:
        assert again.read(0, 1000).items == events, told
    return made


def main(root: Path, step: int) -> None:
    page, found = Page.found(), Counter[str]()
    for fault in FAULTS:
        for n in range(0, 2 * trial(root, page, fault, -1, lasting=False), step):
            trial(root, page, fault, n // 2, lasting=bool(n % 2))
            found[fault] += 1
    sys.stdout.write(msgspec.json.encode(dict(found)).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "state", int(sys.argv[2]))
