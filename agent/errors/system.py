"""What the host, its tools or libvirt could not do."""

from agent.web.errors import Error


class NoSpace(Error):
    """The file system has too little room for the work."""

    status, code = 507, "no-space"
    message = "{path} has {have_bytes} bytes free and {need_bytes} are needed; nothing was touched"


class StorageFailed(Error):
    """The operating system refused a read or a write."""

    status, code, message = 500, "storage-failed", "{action} {path}: {reason}; what was begun was undone"


class NeighbourUnreadable(StorageFailed):
    """It cannot be told whether a file in an image directory stands on one that is to go or to be written to."""

    status, code = 409, "neighbour-unreadable"
    message = (
        "{path} lies beside {frozen} and cannot be read as an image ({reason}), so it may stand on it; nothing was "
        "touched. Move it to a directory without frozen files, or make it readable to the agent, and try again"
    )


class HookLockHeld(Error):
    """The lock that the agent shares with the hook was not free in time."""

    status, code = 503, "hook-lock-held"
    message = "{path} was not free within {timeout_s} s; nothing was touched. Try again; fuser shows who holds it"


class QemuImgFailed(Error):
    """A qemu-img command ended with an error."""

    status, code, message = 500, "qemu-img-failed", "qemu-img {command} failed on {path}: {reason}"


class ToolFailed(Error):
    """An outside command cannot be run, or its output has no end."""

    status, code, message = 500, "tool-failed", "{command} failed: {reason}"


class ToolTimeout(Error):
    """An outside command did not end in time and was stopped."""

    status, code, message = 504, "tool-timeout", "{command} did not end within {timeout_s} s and was stopped"


class OutOfThreads(Error):
    """The operating system starts no more threads for the agent."""

    status, code = 503, "out-of-threads"
    message = "The agent can start no thread: {reason}; nothing was touched. Memory or the unit's TasksMax is used up"


class HypervisorRefused(Error):
    """libvirt refused what the agent asked of it."""

    status, code, message = 500, "hypervisor-refused", "libvirt refused {call}: {reason}"


class EventsLost(Error):
    """A listener was too slow for libvirt's events and has to look at everything again."""

    status, code, message = 500, "events-lost", "A listener fell {count} events behind; list the domains again"


class HypervisorUnavailable(Error):
    """libvirt cannot be reached."""

    status, code = 503, "hypervisor-unavailable"
    message = "libvirt at {uri} cannot be reached: {reason}. The agent reconnects by itself; try again"


class HypervisorTimeout(HypervisorUnavailable):
    """libvirt did not answer in time."""

    status, code = 504, "hypervisor-timeout"
    message = "libvirt at {uri} did not answer {call} within {timeout_s} s. The agent reconnects by itself; try again"


class ControllerRefused(Error):
    """Another controller works with this host."""

    status, code = 409, "controller-refused"
    message = (
        "Controller {controller} works with this host since {since}, so controller {caller} may not; nothing was "
        "touched. Take the host out of the one that is not to have it; where that one is gone or gives it up, run on "
        "the host: coldframe-agent forget-controller"
    )


class StateDirInUse(Error):
    """Another agent works on this state directory."""

    status, code = 503, "state-dir-in-use"
    message = "Another agent works on {state_dir}; two would undo each other's work. Stop it, or set state_dir"
