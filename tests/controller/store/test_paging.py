import pytest

from controller.db import Database
from controller.errors import HostNotFound
from controller.store import hosts, operations, vms
from tests.controller.factories import add_vm


async def test_text_with_nul_is_in_no_row_and_asks_for_none(db: Database) -> None:
    await db.run(add_vm)
    assert (await db.run(vms.page, 9, name="win11\0")).items == []
    assert (await db.run(operations.page, 9, kind="\0")).items == []
    assert len((await db.run(hosts.page, 9, "\0")).items) == 1
    with pytest.raises(HostNotFound):
        await db.run(hosts.get, "kvm1\0")
