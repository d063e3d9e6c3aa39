"""What the inventory asks of those above and beside it, so that agent/host need not import agent/transactions."""

from pathlib import Path
from typing import Protocol
from uuid import UUID

from agent.host.hypervisor import DomainState
from agent.wire.vm import Guard


class Definitions(Protocol):
    """agent.host.hypervisor.Hypervisor, as far as the inventory asks it."""

    async def domains(self) -> list[DomainState]:
        """Return every domain of this host."""

    async def domain(self, uuid: UUID) -> DomainState:
        """Return one domain; raises DomainNotFound."""

    async def inactive_xml(self, uuid: UUID, *, secure: bool = False) -> str:
        """Return the definition that the next start uses."""

    async def live_xml(self, uuid: UUID) -> str:
        """Return the running domain's definition."""


class StartMarks(Protocol):
    """agent.transactions.guard.Guards, as far as the inventory asks it. Blocking."""

    def get(self, vm: UUID) -> Guard | None:
        """Return the guard of a domain."""

    def is_starting(self, vm: UUID) -> bool:
        """Say whether a start has passed the hook and is not done."""


class KeptFiles(Protocol):
    """agent.transactions.expected.ExpectedFiles."""

    @property
    def name(self) -> str:
        """The domain's name when the list was written."""

    @property
    def nvram(self) -> Path | None:
        """The NVRAM path that the domain XML names."""

    @property
    def nvram_default_dir(self) -> Path | None:
        """Where libvirt looks for NVRAM that the domain XML does not name."""

    @property
    def tpm_dir(self) -> Path | None:
        """The directory that holds ``tpm2/``."""


class KeptLists(Protocol):
    """agent.transactions.expected.Expected. Blocking."""

    def write(
        self, vm: UUID, name: str, nvram: Path | None, nvram_default_dir: Path | None, tpm_dir: Path | None
    ) -> None:
        """Keep what a domain must have at its next start."""

    def read(self, vm: UUID) -> KeptFiles | None:
        """Return what is kept."""
