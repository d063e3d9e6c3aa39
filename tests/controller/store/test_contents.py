import hashlib
from uuid import UUID, uuid4

import pytest

from controller.db import Database, write
from controller.errors import ContentCorrupt, ContentMissing
from controller.models import Content
from controller.store import backup_files, contents
from controller.store.contents import pack
from tests.controller.factories import held

DATA = b"the state of a TPM" * 50


async def keep(db: Database, data: bytes = DATA) -> str:
    owner = uuid4()
    await db.run(backup_files.replace, "external", owner, {"tpm": held("tpm", data)})
    return hashlib.sha256(data).hexdigest()


async def test_bytes_come_back_as_they_were(db: Database) -> None:
    for data in (DATA, b"", b"\0" * 600_000):
        assert await db.run(contents.get, await keep(db, data)) == data


async def test_the_same_bytes_are_stored_once_however_many_own_them(db: Database) -> None:
    owners = [uuid4() for _ in range(3)]
    await db.run(backup_files.replace_many, "external", owners, {"tpm": held("tpm", DATA)})
    assert await db.run(lambda: Content.select().count()) == 1
    await db.run(backup_files.remove_owner, "external", owners[0])
    assert await db.run(contents.get, pack(DATA).sha256) == DATA


def spoiled(change: str) -> dict[str, object]:
    packed = pack(DATA)
    return {
        "another content": {"data": pack(b"other" * 180).data},
        "a bit": {"data": packed.data[:-9] + bytes([packed.data[-9] ^ 1]) + packed.data[-8:]},
        "the end": {"data": packed.data[:-5]},
        "everything": {"data": b"garbage"},
        "the size": {"size_bytes": 5},
        "the codec": {"codec": "zstd+later"},
    }[change]  # type: ignore[return-value]


@pytest.mark.parametrize("change", ["another content", "a bit", "the end", "everything", "the size", "the codec"])
async def test_damaged_bytes_are_an_error_and_never_given_out(db: Database, change: str) -> None:
    sha256 = await keep(db)
    await db.run(lambda: Content.update(**spoiled(change)).execute())
    with pytest.raises(ContentCorrupt, match=sha256):
        await db.run(contents.get, sha256)


async def test_storing_the_bytes_again_heals_a_damaged_row(db: Database) -> None:
    sha256 = await keep(db)
    await db.run(lambda: Content.update(data=b"garbage").execute())
    await keep(db)
    assert await db.run(contents.get, sha256) == DATA


async def test_a_hash_that_is_not_held_cannot_be_referred_to(db: Database) -> None:
    with pytest.raises(ContentMissing):
        await db.run(backup_files.replace, "external", UUID(int=1), {"tpm": held("tpm", "0" * 64)})
    with pytest.raises(ContentMissing):
        await db.run(contents.get, "0" * 64)


async def test_sweep_takes_what_nothing_refers_to_and_nothing_else(db: Database) -> None:
    kept = await keep(db)

    def leave_one_behind() -> int:
        with write():
            contents.put(pack(b"nobody's"))
            return contents.sweep()

    assert await db.run(leave_one_behind) == 1
    assert await db.run(contents.get, kept) == DATA


def test_packed_bytes_are_not_shown() -> None:
    assert "data" not in repr(pack(b"secret"))
