from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from agent.wire.base import utc_now
from controller.db import Database
from controller.errors import NameInvalid, TokenExists, TokenNotFound
from controller.models import Token
from controller.store import events, tokens


@pytest.mark.case("X2")
async def test_a_token_is_known_by_its_secret_which_is_stored_nowhere(db: Database, tmp_path: Path) -> None:
    made = await db.run(tokens.create, "ansible", "operator")
    found = await db.run(tokens.verify, made.secret)
    assert found is not None
    assert (found.uuid, found.name, found.role) == (made.token.uuid, "ansible", "operator")
    assert not any(made.secret.encode() in path.read_bytes() for path in tmp_path.iterdir())
    assert len(made.secret) > 40
    assert made.secret not in str(await db.run(events.read, 0, 9))


@pytest.mark.case("X2")
@pytest.mark.parametrize("wrong", ["", "cf_", "cf_" + "A" * 43, "é\udc80\0", "x" * 100_000])
async def test_any_other_secret_is_unknown(db: Database, wrong: str) -> None:
    made = await db.run(tokens.create, "ansible", "operator")
    assert await db.run(tokens.verify, wrong) is None
    assert await db.run(tokens.verify, made.secret + "x") is None
    assert await db.run(tokens.verify, made.secret[:-1]) is None
    stored = await db.run(lambda: Token.get().sha256)
    assert await db.run(tokens.verify, stored) is None


@pytest.mark.case("X2")
async def test_a_revoked_token_is_out_of_force_at_once_and_its_name_is_free(db: Database) -> None:
    made = await db.run(tokens.create, "ansible", "admin")
    await db.run(tokens.revoke, made.token.uuid)
    assert await db.run(tokens.verify, made.secret) is None
    assert (await db.run(tokens.page, 9)).items == []
    for uuid in (made.token.uuid, uuid4()):
        with pytest.raises(TokenNotFound):
            await db.run(tokens.revoke, uuid)
    again = await db.run(tokens.create, "ansible", "admin")
    assert again.secret != made.secret


@pytest.mark.case("X2")
async def test_a_token_ends_when_it_was_said_to_end(db: Database) -> None:
    later, past = utc_now() + timedelta(hours=1), utc_now() - timedelta(seconds=1)
    valid = await db.run(tokens.create, "valid", "reader", later)
    ended = await db.run(tokens.create, "ended", "reader", past)
    assert await db.run(tokens.verify, valid.secret) is not None
    assert await db.run(tokens.verify, ended.secret) is None


async def test_the_last_use_is_noted_without_a_write_for_each(db: Database) -> None:
    made = await db.run(tokens.create, "ansible", "reader")
    await db.run(tokens.verify, made.secret)
    noted = (await db.run(tokens.get, made.token.uuid)).last_used_at
    version = db.version
    await db.run(tokens.verify, made.secret)
    assert noted is not None
    assert db.version == version
    assert (await db.run(tokens.get, made.token.uuid)).last_used_at == noted


async def test_names_are_plain_and_unique_among_tokens_in_force(db: Database) -> None:
    await db.run(tokens.create, "ansible", "reader")
    with pytest.raises(TokenExists):
        await db.run(tokens.create, "ansible", "admin")
    for name in ("", "-x", "a b", "a\n", "é", "x" * 64):
        with pytest.raises(NameInvalid):
            await db.run(tokens.create, name, "admin")
