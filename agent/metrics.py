"""The agent's own numbers for Prometheus."""

from prometheus_client import CollectorRegistry, Gauge

from agent.host.event_log import EventLog
from agent.host.hypervisor import Hypervisor
from agent.transactions.manager import Manager
from agent.wire.transaction import ENDED


def registry_of(hypervisor: Hypervisor, manager: Manager, event_log: EventLog) -> CollectorRegistry:
    """Return a registry whose values are taken when it is scraped."""
    registry = CollectorRegistry()
    connected = Gauge("coldframe_agent_libvirt_connected", "1 while libvirt is connected", registry=registry)
    connected.set_function(lambda: float(hypervisor.connected))
    working = Gauge("coldframe_agent_transactions_under_way", "Transactions that have not ended", registry=registry)
    working.set_function(lambda: float(sum(one.state not in ENDED for one in manager.all())))
    newest = Gauge("coldframe_agent_newest_event", "The number of the newest event", registry=registry)
    newest.set_function(lambda: float(event_log.last_seq))
    return registry
