"""Who this controller is: the one row that a migration made."""

from uuid import UUID

from controller.db import read
from controller.models import Identity


def own() -> UUID:
    """Return the UUID by which agents know this controller. A copy of the database is the same controller."""
    with read():
        return Identity.get().uuid
