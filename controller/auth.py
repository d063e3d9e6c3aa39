"""Who may call the controller: tokens from the database, and the one in ``token_file`` where there is one."""

from pathlib import Path

from agent.web.auth import Authenticator, Identity, by_lookup, first_of, one_secret, read_secret_file
from controller.db import Database
from controller.store import tokens

#: What the audit log calls whoever uses the token file.
TOKEN_FILE_NAME = "token-file"  # noqa: S105 - a name


def authenticator(db: Database, token_file: Path | None) -> Authenticator:
    """Return who lets callers in. Raises SettingsError where the token file cannot be used."""

    async def lookup(presented: str) -> Identity | None:
        token = await db.run(tokens.verify, presented)
        return None if token is None else Identity(token.name, token.role)

    stored = by_lookup(lookup)
    if token_file is None:
        return stored
    return first_of(one_secret(read_secret_file(token_file), TOKEN_FILE_NAME), stored)
