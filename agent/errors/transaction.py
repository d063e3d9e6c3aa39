"""What is wrong with a transaction."""

from agent.errors.base import NotFound, Refused


class TransactionNotFound(NotFound):
    """The agent knows no such transaction, or has forgotten its outcome after 30 days."""

    code, message = "transaction-not-found", "Transaction {id} is not known to this agent"


class TransactionMismatch(Refused):
    """The id was used before for a different request."""

    code, message = "transaction-mismatch", "Transaction {id} exists with a different request; nothing was touched"


class TransactionEnded(Refused):
    """The transaction has ended and cannot be changed."""

    code, message = "transaction-ended", "Transaction {id} is {state}; begin another with a new id"


class LeaseExpired(Refused):
    """The lease ran out before commit, and the transaction was undone."""

    code = "lease-expired"
    message = "The lease of transaction {id} ran out; what was staged was removed. Begin another with a new id"


class AgentRestarted(Refused):
    """The agent was restarted before the commit, and the transaction was undone."""

    code = "agent-restarted"
    message = "The agent was restarted before transaction {id} was committed; what was staged was removed. Try again"


class Released(Refused):
    """The transaction was aborted on request."""

    code, message = "aborted", "Transaction {id} was aborted on request; what was staged was removed"
