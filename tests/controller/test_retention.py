"""The planner of retention: by example, and what holds for whatever snapshots and policies there are."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.retention import RetentionPolicy
from agent.wire.snapshot import Snapshot
from controller.retention import Verdict, covers
from controller.retention import plan as plan_at

T0 = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)  # a Monday
NOW = datetime(2199, 1, 1, tzinfo=UTC)
VMS = [UUID(int=1), UUID(int=2)]
NOTHING: dict[str, Any] = dict.fromkeys(("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly"), 0)


def snapshot(number: int, created_at: datetime, **changes: Any) -> Snapshot:
    values: dict[str, Any] = {"uuid": UUID(int=number), "vm": VMS[0], "created_at": created_at, "current": False}
    return msgspec.structs.replace(Snapshot.example(), **values | {"name": f"s{number}", **changes})


def policy(name: str = "p", **changes: Any) -> RetentionPolicy:
    return msgspec.structs.replace(RetentionPolicy.example(), **NOTHING | {"name": name, "vm": VMS[0], **changes})


def plan(
    found: list[Snapshot],
    policies: list[RetentionPolicy],
    going: Collection[UUID] = frozenset(),
    *,
    now: datetime = NOW,
) -> list[Verdict]:
    return plan_at(sorted(found, key=lambda one: (one.created_at, one.uuid)), policies, going, now=now)


def kept(verdicts: list[Verdict]) -> list[str]:
    return [one.snapshot.name for one in verdicts if one.keep]


def every(hours: int, count: int) -> list[Snapshot]:
    return [snapshot(number, T0 + timedelta(hours=hours * number)) for number in range(count)]


def test_the_last_and_the_newest_of_each_day_and_week_are_kept() -> None:
    verdicts = plan(every(6, 60), [policy(keep_last=2, keep_daily=3, keep_weekly=3)])
    told = {one.snapshot.name: one.reason for one in verdicts if one.keep}
    assert told == {
        "s59": "policy p: last 1 of 2, day 1 of 3 (2026-11-17), week 1 of 3 (2026-W47)",
        "s58": "policy p: last 2 of 2, day 2 of 3 (2026-11-16)",
        "s54": "policy p: day 3 of 3 (2026-11-15), week 2 of 3 (2026-W46)",
        "s26": "policy p: week 3 of 3 (2026-W45)",
    }
    assert {one.reason for one in verdicts if not one.keep} == {"kept by no rule of policy p"}


def test_periods_are_those_of_utc_and_periods_without_a_snapshot_do_not_count() -> None:
    late = datetime(2026, 11, 2, 23, 30, tzinfo=UTC)
    found = [
        snapshot(1, late - timedelta(days=40)),
        snapshot(2, late),
        snapshot(3, late.astimezone(datetime.strptime("+05:00", "%z").tzinfo) + timedelta(hours=1)),
    ]
    assert kept(plan(found, [policy(keep_daily=3)])) == ["s3", "s2", "s1"]
    assert kept(plan(found, [policy(keep_daily=2)])) == ["s3", "s2"]
    assert kept(plan(found, [policy(keep_monthly=9)])) == ["s3", "s1"]
    assert kept(plan(found, [policy(keep_hourly=1)])) == ["s3"]


def test_weeks_begin_on_monday_also_across_the_year() -> None:
    found = [snapshot(day, datetime(2026, 12, 27, 12, tzinfo=UTC) + timedelta(days=day)) for day in range(9)]
    # The 28th is a Monday; its week ends on the 3rd of January.
    assert kept(plan(found, [policy(keep_weekly=9)])) == ["s8", "s7", "s0"]


def test_two_policies_keep_what_either_of_them_keeps() -> None:
    found = [snapshot(n, T0 + timedelta(days=n), labels={"keep": "yes"} if n % 2 else {}) for n in range(6)]
    labelled = policy("labelled", vm=None, labels={"keep": "yes"}, keep_last=2)
    verdicts = plan(found, [policy(keep_last=1), labelled])
    assert kept(verdicts) == ["s5", "s3"]
    assert verdicts[0].reason == "policy p: last 1 of 1; policy labelled: last 1 of 2"
    assert verdicts[-2].reason == "kept by no rule of policies p, labelled"
    assert [one.reason for one in plan(found, [labelled])[1::2]] == ["no policy covers it"] * 3


def test_protected_and_automatic_ones_and_those_in_the_making_are_out_of_reach_and_not_counted() -> None:
    odd = [
        snapshot(10, T0 + timedelta(days=10), protected=True),
        snapshot(11, T0 + timedelta(days=11), automatic=True),
        snapshot(12, T0 + timedelta(days=12), state="creating"),
        snapshot(13, T0 + timedelta(days=13), state="failed"),
    ]
    found = [*every(24, 3), *odd]
    assert kept(plan(found, [policy(keep_last=1)])) == ["s13", "s12", "s11", "s10", "s2"]


def test_what_is_going_already_is_not_relied_on() -> None:
    found = [*every(24, 3), snapshot(9, T0 + timedelta(days=9), state="deleting")]
    verdicts = plan(found, [policy(keep_last=1)], {UUID(int=2)})
    assert kept(verdicts) == ["s1"]
    assert [one.reason for one in verdicts[:2]] == ["its deletion was asked for or has begun"] * 2


def test_the_one_that_the_vm_stands_on_stays() -> None:
    found = every(24, 3)
    found[0] = msgspec.structs.replace(found[0], current=True)
    assert [one.reason for one in plan(found, [policy(keep_last=1)])][2] == "the VM stands on it"


STATES = ["ready"] * 5 + ["creating", "failed", "reverting", "deleting"]
COUNTS = st.integers(0, 4)
HEAPS = st.lists(
    st.builds(
        lambda hours, vm, **more: (hours, {"vm": vm, **more}),
        st.integers(0, 3000),
        st.sampled_from(VMS),
        protected=st.booleans(),
        automatic=st.booleans(),
        current=st.booleans(),
        labels=st.sampled_from([{}, {"a": "1"}, {"a": "1", "b": "2"}]),
        state=st.sampled_from(STATES),
    ),
    max_size=30,
).map(lambda heap: [snapshot(n, T0 + timedelta(hours=hours), **more) for n, (hours, more) in enumerate(heap)])
POLICIES = st.lists(
    st.builds(
        policy,
        st.sampled_from(["p", "q", "r"]),
        vm=st.sampled_from([None, *VMS]),
        labels=st.sampled_from([{}, {"a": "1"}, {"b": "2"}]),
        keep_last=COUNTS,
        keep_hourly=COUNTS,
        keep_daily=COUNTS,
        keep_weekly=COUNTS,
        keep_monthly=st.integers(1, 4),
    ),
    max_size=3,
)
GOING = st.sets(st.integers(0, 29).map(lambda number: UUID(int=number)), max_size=4)


@given(HEAPS, POLICIES, GOING)
def test_whatever_there_is_the_verdicts_are_safe(
    found: list[Snapshot], policies: list[RetentionPolicy], going: set[UUID]
) -> None:
    verdicts = {one.snapshot.uuid: one for one in plan(found, policies, going)}
    assert verdicts.keys() == {one.uuid for one in found}
    for uuid, verdict in verdicts.items():
        one = verdict.snapshot
        covered = any(covers(each, one) for each in policies)
        out_of_reach = one.protected or one.automatic or one.state in {"creating", "failed", "reverting"}
        stood_on = one.current and one.state == "ready" and uuid not in going
        if out_of_reach or not covered or stood_on:
            assert verdict.keep
    for each in policies:
        for vm in VMS:
            counted = [one for one in found if one.vm == vm and covers(each, one) and one.uuid not in going]
            counted = [one for one in counted if one.state in {"ready", "reverting"}]
            counted = [one for one in counted if not one.protected and not one.automatic]
            if counted:
                newest = max(counted, key=lambda one: (one.created_at, one.uuid))
                assert verdicts[newest.uuid].keep


@given(HEAPS, POLICIES, GOING)
def test_once_all_that_goes_is_gone_nothing_more_goes(
    found: list[Snapshot], policies: list[RetentionPolicy], going: set[UUID]
) -> None:
    first = [one.snapshot for one in plan(found, policies, going) if one.keep]
    assert [one.snapshot for one in plan(first, policies, going) if one.keep] == first


@given(HEAPS, POLICIES, POLICIES)
def test_another_policy_never_lets_go_what_one_alone_would_keep_by_a_rule(
    found: list[Snapshot], policies: list[RetentionPolicy], more: list[RetentionPolicy]
) -> None:
    alone = {one.snapshot.uuid for one in plan(found, policies) if one.keep and one.policies}
    together = {one.snapshot.uuid for one in plan(found, [*policies, *more]) if one.keep}
    assert alone <= together


def test_a_clock_that_is_years_ahead_lets_nothing_go_that_stays_today() -> None:
    found = every(6, 60)
    policies = [policy(keep_last=2, keep_daily=3, keep_weekly=3)]
    today, ahead = (plan(found, policies, now=T0 + timedelta(days=days)) for days in (16, 16 + 3650))
    assert kept(today) == kept(ahead)


def test_while_a_snapshot_is_dated_later_than_now_nothing_of_its_vm_goes() -> None:
    """The clock was ahead and was put right, or it is behind now: which day is whose cannot be told."""
    found = [*every(24, 9), snapshot(99, T0 + timedelta(days=3650)), snapshot(50, T0, vm=VMS[1])]
    found += [snapshot(51, T0 + timedelta(days=1), vm=VMS[1])]
    policies = [policy(keep_last=1), policy("q", keep_last=1, vm=VMS[1])]
    verdicts = {one.snapshot.name: one for one in plan(found, policies, now=T0 + timedelta(days=10))}
    assert {name for name, one in verdicts.items() if not one.keep} == {"s50"}  # of the other VM
    assert "snapshot s99 is dated 2036-10-30 09:30 UTC" in verdicts["s3"].reason
    without = [one for one in found if one.name != "s99"]
    assert kept(plan(without, policies, now=T0 + timedelta(days=10))) == ["s8", "s51"]


def test_what_was_taken_last_is_the_newest_whatever_the_clock_said_then() -> None:
    """A clock was ten days ahead for the first and ten days behind for the last one, and both are past by now."""
    dates = [T0 + timedelta(days=days) for days in (10, 1, 2, -7)]
    found = [snapshot(number, at) for number, at in enumerate(dates)]
    assert kept(plan_at(found, [policy(keep_last=1)], now=NOW)) == ["s3"]
    assert kept(plan_at(found, [policy(keep_daily=2)], now=NOW)) == ["s3", "s2"]
    assert kept(plan_at(found, [policy(keep_last=3, keep_monthly=1)], now=NOW)) == ["s3", "s2", "s1"]


def test_a_clock_that_is_corrected_by_seconds_stops_nothing() -> None:
    found = every(24, 9)
    assert kept(plan(found, [policy(keep_last=1)], now=found[-1].created_at - timedelta(seconds=30))) == ["s8"]
