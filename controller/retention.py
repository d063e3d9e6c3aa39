"""Which snapshots go: from snapshots and policies to a verdict on each, in words. Pure.

Every rule of a policy looks at all snapshots that the policy covers, of one VM, newest first, and keeps the newest of
each hour, day, week (ISO 8601) or month in UTC until it has as many as it wants; periods without a snapshot do not
count. What any rule of any policy keeps is kept. What was kept is kept again however often the same is asked.

No rule asks how old a snapshot is, so a clock that is ahead makes none of them go. Which is newer tells the order in
which they were taken, whatever their dates say. But a clock that is wrong puts snapshots into hours and days that are
not theirs: while one of a VM is dated later than now, none of that VM goes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from agent.wire.retention import RetentionPolicy
from agent.wire.snapshot import Snapshot

#: The period that a moment in UTC falls into, by the word for it. Each snapshot is its own "last".
_PERIODS: Mapping[str, Callable[[datetime], str]] = {
    "hour": lambda at: f"{at:%Y-%m-%d %H:00}",
    "day": lambda at: f"{at:%Y-%m-%d}",
    "week": lambda at: f"{at:%G-W%V}",
    "month": lambda at: f"{at:%Y-%m}",
}


#: Clocks are corrected by less than this all the time.
_AHEAD = timedelta(minutes=1)


@dataclass(frozen=True)
class Verdict:
    """``keep`` or not, and why; ``policies`` are the names of those that cover the snapshot."""

    snapshot: Snapshot
    keep: bool
    reason: str
    policies: list[str]


def plan(
    found: Sequence[Snapshot],
    policies: Sequence[RetentionPolicy],
    going: Collection[UUID] = frozenset(),
    *,
    now: datetime,
) -> list[Verdict]:
    """Return a verdict on each snapshot, newest first; only what a policy covers can go. ``found``: as they were taken.

    ``going`` are snapshots whose deletion others have asked for or begun: they go, and no rule counts on them. The
    newest that a policy counts always stays, as each policy has a rule that keeps it.
    """
    newest_first = found[::-1]
    kept: dict[UUID, list[str]] = {}
    for policy in policies:
        for vm in {one.vm for one in newest_first}:
            counted = [one for one in newest_first if one.vm == vm and covers(policy, one) and _counts(one, going)]
            for uuid, rules in _kept(policy, counted).items():
                kept.setdefault(uuid, []).append(f"policy {policy.name}: {', '.join(rules)}")
    verdicts = [_verdict(one, policies, kept.get(one.uuid, []), going) for one in newest_first]
    ahead = {one.vm: one for one in newest_first if is_ahead(one, now)}
    return [_unless_dates_are_wrong(one, ahead.get(one.snapshot.vm), going) for one in verdicts]


def _unless_dates_are_wrong(one: Verdict, ahead: Snapshot | None, going: Collection[UUID]) -> Verdict:
    if ahead is None or one.keep or one.snapshot.uuid in going or one.snapshot.state == "deleting":
        return one
    told = f"snapshot {ahead.name} is dated {ahead.created_at:%Y-%m-%d %H:%M} UTC, which is still to come"
    return replace(one, keep=True, reason=f"{told}: nothing of this VM goes until then, or until that one is deleted")


def is_ahead(one: Snapshot, now: datetime) -> bool:
    """Return whether a snapshot is dated later than now: by a clock that was ahead then, or is behind now."""
    return one.created_at > now + _AHEAD


def covers(policy: RetentionPolicy, one: Snapshot) -> bool:
    """Return whether a policy is about this snapshot."""
    return policy.vm in {None, one.vm} and policy.labels.items() <= one.labels.items()


def _counts(one: Snapshot, going: Collection[UUID]) -> bool:
    """Return whether a rule may rely on this snapshot: it is whole, stays, and is there for its own sake."""
    whole = one.state in {"ready", "reverting"} and one.uuid not in going
    return whole and not one.protected and not one.automatic


def _kept(policy: RetentionPolicy, newest_first: Sequence[Snapshot]) -> dict[UUID, list[str]]:
    """Return what the rules of one policy keep of one VM, with the rules that do."""
    kept: dict[UUID, list[str]] = {}
    for number, one in enumerate(newest_first[: policy.keep_last], 1):
        kept.setdefault(one.uuid, []).append(f"last {number} of {policy.keep_last}")
    wanted = (policy.keep_hourly, policy.keep_daily, policy.keep_weekly, policy.keep_monthly)
    for (word, period_of), count in zip(_PERIODS.items(), wanted, strict=True):
        for number, period, one in _newest_of_each(newest_first, period_of, count):
            kept.setdefault(one.uuid, []).append(f"{word} {number} of {count} ({period})")
    return kept


def _newest_of_each(
    newest_first: Sequence[Snapshot], period_of: Callable[[datetime], str], count: int
) -> Iterator[tuple[int, str, Snapshot]]:
    seen: set[str] = set()
    for one in newest_first:
        period = period_of(one.created_at.astimezone(UTC))
        if len(seen) < count and period not in seen:
            seen.add(period)
            yield len(seen), period, one


def _verdict(one: Snapshot, policies: Sequence[RetentionPolicy], kept: list[str], going: Collection[UUID]) -> Verdict:
    names = [policy.name for policy in policies if covers(policy, one)]
    because = _stays(one, names)
    if because is not None:
        return Verdict(one, True, because, names)
    if one.state == "deleting" or one.uuid in going:
        return Verdict(one, False, "its deletion was asked for or has begun", names)
    if kept:
        return Verdict(one, True, "; ".join(kept), names)
    if one.current:
        return Verdict(one, True, "the VM stands on it", names)
    return Verdict(one, False, f"kept by no rule of {_listed(names)}", names)


def _stays(one: Snapshot, names: list[str]) -> str | None:
    """Return why a snapshot is out of every policy's reach, or None."""
    if one.protected:
        return "it is protected"
    if one.automatic:
        return "it is an undo point, which reverts look after"
    reasons = {
        "creating": "it is being taken",
        "reverting": "the VM is being reverted to it",
        "failed": "it never became whole; doctor says what to do",
    }
    return reasons.get(one.state) or (None if names else "no policy covers it")


def _listed(names: list[str]) -> str:
    return f"{'policy' if len(names) == 1 else 'policies'} {', '.join(names)}"
