"""``coldframe retention``: what it asks and what it prints."""

import msgspec

from agent.wire.operation import Operation
from agent.wire.retention import RetentionPolicy, RetentionVerdict
from tests.controller.cli.conftest import Coldframe
from tests.controller.cli.fake import FakeController

POLICY = RetentionPolicy.example()
ONE = "/v1/retention-policies/nightly"


def test_set_sends_the_whole_policy_and_says_what_it_keeps(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("PUT", ONE, POLICY)
    words = ("retention", "set", "nightly", "--vm", "win11", "--label", "by=cron", "--keep-daily", "7", "--disabled")
    done = coldframe(*words)
    assert done.out.splitlines()[0] == "Policy nightly is in force: of VM win11 it keeps 3 last, 7 daily, 4 weekly"
    assert fake.sent("PUT", ONE).body == {
        "vm": "win11",
        "labels": {"by": "cron"},
        "keep_last": 0,
        "keep_hourly": 0,
        "keep_daily": 7,
        "keep_weekly": 0,
        "keep_monthly": 0,
        "enabled": False,
    }
    assert coldframe("retention", "set", "nightly", "--keep-last", "-1").status == 2


def test_list_show_and_remove(fake: FakeController, coldframe: Coldframe) -> None:
    labelled = msgspec.structs.replace(POLICY, name="cron", vm=None, vm_name=None, labels={"by": "cron"})
    fake.page("/v1/retention-policies", [labelled, POLICY])
    fake.answer("GET", ONE, POLICY)
    fake.answer("DELETE", ONE, POLICY)
    assert coldframe("retention", "list").out.splitlines()[1:] == [
        "cron     all VMs, by=cron  3 last, 7 daily, 4 weekly  yes",
        "nightly  VM win11          3 last, 7 daily, 4 weekly  yes",
    ]
    assert coldframe("retention", "show", "nightly", "--json").json["keep_daily"] == 7
    assert "keeps    3 last" in coldframe("retention", "show", "nightly").out
    assert "is removed" in coldframe("retention", "remove", "nightly").out


def test_preview_is_one_line_for_each_snapshot(fake: FakeController, coldframe: Coldframe) -> None:
    gone = msgspec.structs.replace(RetentionVerdict.example(), keep=False, reason="kept by no rule of policy nightly")
    fake.page(f"{ONE}/preview", [RetentionVerdict.example(), gone])
    lines = coldframe("retention", "preview", "nightly").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["keep", "delete"]
    assert lines[2].endswith("kept by no rule of policy nightly")
    assert [one["keep"] for one in coldframe("retention", "preview", "nightly", "--json").json["items"]] == [
        True,
        False,
    ]


def test_apply_tells_all_that_became_of_it_and_exits_1_where_a_deletion_failed(
    fake: FakeController, coldframe: Coldframe
) -> None:
    well = {"policy": "nightly", "deleted": ["a"], "waiting": [], "failed": [], "skipped": []}
    bad = {
        **well,
        "waiting": [{"snapshot": "b"}],
        "failed": [{"snapshot": "c", "reason": "no room"}],
        "skipped": [{"vm": "v", "reason": "nowhere"}],
    }
    for result in (well, bad):
        fake.answer("POST", f"{ONE}/apply", msgspec.structs.replace(Operation.example(), result=result), status=202)
    assert (coldframe("retention", "apply", "nightly").status, len(fake.asked)) == (0, 1)
    done = coldframe("retention", "apply", "nightly")
    assert (done.status, done.out.splitlines()) == (
        1,
        [
            "1 snapshot(s) were deleted",
            "Snapshot b goes when its VM stops",
            "Snapshot c was not deleted: no room",
            "VM v was left out: nowhere",
        ],
    )
