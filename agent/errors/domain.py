"""What is wrong with a domain."""

from agent.errors.base import NotFound, Refused


class DomainNotFound(NotFound):
    """This host defines no such domain."""

    code, message = "domain-not-found", "This host defines no domain {vm}; see: virsh list --all"


class DomainRunning(Refused):
    """The work needs the domain to be shut off."""

    code = "domain-running"
    message = "Domain {name} is running; nothing was touched. Shut it down first: virsh shutdown {name}"


class DomainPaused(Refused):
    """The work needs the domain to be shut off, and it is paused."""

    code = "domain-paused"
    message = "Domain {name} is paused; nothing was touched. Resume it and shut it down first: virsh resume {name}"


class DomainStarting(Refused):
    """The domain was being started at this moment."""

    code = "domain-starting"
    message = "Domain {name} is being started; nothing was touched. Shut it down, then try again"


class DomainTransient(Refused):
    """A transient domain has no definition to switch."""

    code = "domain-transient"
    message = "Domain {name} is transient; nothing was touched. Make it persistent first: virsh define FILE"


class DomainManagedSave(Refused):
    """A managed-save image would write into the frozen disks when the domain resumes."""

    code = "domain-managed-save"
    message = (
        "Domain {name} has a managed-save image; nothing was touched. Start it and shut it down, "
        "or drop its saved memory: virsh managedsave-remove {name}"
    )


class DomainBusy(Refused):
    """Another transaction is at work on this domain."""

    code = "domain-busy"
    message = (
        "Domain {name} is held by {kind} transaction {transaction} since {since}; nothing was touched. "
        "Wait for it to end, or see: coldframe-agent transactions"
    )


class DomainUnreadable(Refused):
    """The domain's definition is not one that can be worked with."""

    code, message = "domain-unreadable", "Domain {name} cannot be worked with: {reason}; nothing was touched"


class DomainExists(Refused):
    """The name or UUID of a domain that is to be made is taken."""

    code, message = "domain-exists", "This host defines {name} ({vm}) already; nothing was touched. Choose another name"


class HostUnsuitable(Refused):
    """A domain that is to come here needs what this host does not have."""

    code = "host-unsuitable"
    message = (
        "Domain {name} needs {what} on this host: {reason}; nothing was touched. Install it, or choose another host"
    )


class DomainNameRefused(Refused):
    """A domain cannot have this name."""

    code, message = "domain-name-refused", "A domain cannot be called {name!r}: {reason}; nothing was touched"
