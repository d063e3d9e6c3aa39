"""A rehearsal does everything to the records, tells what that comes to, and leaves them as they were."""

import pytest

from controller.db import Database
from controller.errors import TokenExists
from controller.models import Token
from controller.rehearsal import Rehearsal
from controller.store import backup_files, snapshots, tokens, vms
from tests.controller.factories import add_snapshot, add_vm


async def test_what_was_done_is_found_by_what_comes_next_and_by_nobody_else(db: Database) -> None:
    version, rehearsal = db.version, Rehearsal(db)
    await rehearsal.run(tokens.create, "ansible", "operator")
    with pytest.raises(TokenExists):
        await rehearsal.run(tokens.create, "ansible", "operator")
    assert await rehearsal.run(Token.select().count) == 1
    assert await db.run(Token.select().count) == 0
    assert db.version == version
    await rehearsal.effects()
    assert db.version == version


async def test_effects_are_rows_and_not_statements(db: Database) -> None:
    vm = await db.run(add_vm)
    uuid = (await db.run(add_snapshot, vm)).uuid
    files = await db.run(backup_files.of_owner, uuid)
    rehearsal = Rehearsal(db)
    await rehearsal.run(vms.forget, vm)
    steps = {step.name: step.facts for step in await rehearsal.effects()}
    assert {"remove 1 vm", "remove 1 snapshot", "remove 1 vm definition"} <= steps.keys()
    assert f"remove {len(files)} backup files" in steps
    (gone,) = [facts for facts in steps.values() if facts["table"] == "content"]
    assert gone["bytes"] == sum({file.sha256: file.size_bytes for file in files}.values())
    assert await db.run(snapshots.get, uuid)


async def test_nothing_done_has_no_effects(db: Database) -> None:
    rehearsal = Rehearsal(db)
    await rehearsal.run(tokens.page, 10)
    assert await rehearsal.effects() == []
