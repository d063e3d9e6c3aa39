"""What every transaction of an agent works with."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from agent.host.hypervisor import Hypervisor
from agent.host.inventory import Inventory
from agent.limits import Limits
from agent.transactions.guard import Guards
from agent.transactions.journal import Journal
from agent.transactions.locks import HeldLocks
from agent.transactions.steps import Work
from agent.web.checkpoint import Checkpoint


@dataclass(frozen=True)
class Tools:
    """What every transaction works with. ``checkpoint`` hears of each point at which the agent could die."""

    hypervisor: Hypervisor
    inventory: Inventory
    guards: Guards
    journal: Journal
    limits: Limits
    checkpoint: Checkpoint

    def work_on(self, vm: UUID, locks: HeldLocks, on_bytes: Callable[[str, int], None]) -> Work:
        """Return what the steps of one transaction of a domain work with. Its name is not known yet."""
        return Work(
            vm=vm,
            name=str(vm),
            hypervisor=self.hypervisor,
            inventory=self.inventory,
            locks=locks,
            nvram_dir=self.limits.nvram_dir,
            swtpm_dir=self.limits.swtpm_dir,
            image_dirs=self.limits.allowed_image_dirs,
            host_file_limit_bytes=self.limits.host_file_limit_bytes,
            on_bytes=on_bytes,
        )
