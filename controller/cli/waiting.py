"""Waiting for an operation, with a progress bar where somebody watches."""

import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from agent.wire.operation import OPERATION_ENDED, Operation
from agent.wire.problem import Problem
from controller.cli.client import path
from controller.cli.errors import Answered, ControllerUnreachable, NotAController
from controller.cli.session import Session
from controller.cli.text import facts, size, when

T = TypeVar("T")

#: How long one request waits: short where a bar must move, else as long as the controller allows.
WATCHED_S, UNWATCHED_S = 1, 20
#: A controller that restarts takes its operations up again; it may be away for this long.
PATIENCE_S = 60
RETRY_S = 1


def wait(session: Session, operation: Operation, *, parked: bool = False) -> Operation:
    """Return the operation once it has succeeded. Raises Answered with its Problem where it did not.

    With ``parked`` one that waits for its VM to stop is returned too, as it is: that may take days.

    The operation does not need this process: an interrupted wait says how to go on.
    """
    try:
        look = _watch if session.err.is_terminal else _poll
        ended = look(session, operation, parked)
    except KeyboardInterrupt:
        session.err.print(f"\nThe operation goes on. To wait for it: coldframe operation wait {operation.uuid}")
        raise
    if ended.state == "succeeded" or ended.is_parked:
        return ended
    raise Answered(ended.error or cancelled(ended))


def cancelled(operation: Operation) -> Problem:
    """Return the Problem of an operation that ended without success and without an error of its own."""
    return Problem(
        title="The operation did not succeed.",
        status=500,
        code=f"operation-{operation.state}",
        detail=f"Operation {operation.uuid} was {operation.state}; what it had begun was undone",
        facts={"operation": str(operation.uuid)},
    )


def _goes_on(operation: Operation, parked: bool) -> bool:
    return operation.state not in OPERATION_ENDED and not (parked and operation.is_parked)


def _watch(session: Session, operation: Operation, parked: bool) -> Operation:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=session.err, transient=True) as bar:
        task = bar.add_task(f"{operation.kind}: {operation.step}", total=None)
        while _goes_on(operation, parked):
            operation = _ask(session, operation, WATCHED_S)
            done = operation.progress
            bar.update(
                task,
                description=f"{operation.kind}: {operation.step}",
                completed=done.done_bytes,
                total=done.total_bytes or None,
            )
    return operation


def _poll(session: Session, operation: Operation, parked: bool) -> Operation:
    """Ask rarely; an operation that may begin to wait for its VM just after it was accepted, soon once."""
    wait_s = WATCHED_S if parked else UNWATCHED_S
    while _goes_on(operation, parked):
        operation = _ask(session, operation, wait_s)
        wait_s = UNWATCHED_S
    return operation


def _ask(session: Session, operation: Operation, wait_s: int) -> Operation:
    """Ask how far it is. An unreachable controller is asked again until PATIENCE_S have passed."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return session.client.get(path("operations", str(operation.uuid)), Operation, wait=wait_s)
        except ControllerUnreachable as err:
            if time.monotonic() >= until:
                facts = err.facts | {
                    "reason": f"{err.facts['reason']}; the operation may go on, ask later with: "
                    f"coldframe operation wait {operation.uuid}"
                }
                raise ControllerUnreachable(**facts) from err
            time.sleep(RETRY_S)


def result_id(operation: Operation, name: str) -> str:
    """Return what an operation made or changed, by the name in its result. Raises Answered where it is not there."""
    value = operation.result.get(name)
    if isinstance(value, str):
        return value
    detail = f"Operation {operation.uuid} succeeded and does not name its {name}"
    raise Answered(msgspec.structs.replace(cancelled(operation), detail=detail))


def show_operation(session: Session, operation: Operation) -> None:
    """Print one operation."""
    session.show(operation, lambda: facts(session.out, operation_facts(operation)))


def settle(session: Session, answer: T | Operation, then: Callable[[Operation], None]) -> None:
    """Wait for an accepted operation and go on with ``then``; with ``--no-wait`` print it as it is.

    An answer that is no operation is complete already and is a defect here: only calls that answer 202 come here.
    """
    if not isinstance(answer, Operation):
        raise NotAController(url=session.client.url, reason="it did not answer with an operation")
    if session.options.no_wait:
        show_operation(session, answer)
        return
    ended = wait(session, answer, parked=True)
    if ended.is_parked:
        session.show(ended, lambda: _tell_parked(session, ended))
    else:
        _see_through(session, ended)
        then(ended)


def _see_through(session: Session, ended: Operation) -> None:
    """Wait for the deletions that an operation has asked for: while one works the VM cannot be started.

    What becomes of them does not change how the command ends; they are told on standard error.
    """
    for uuid in ended.result.get("deletions", []):
        try:
            one = session.client.get(path("operations", str(uuid)), Operation)
            wait(session, one, parked=True)
        except (Answered, ControllerUnreachable) as err:
            session.err.print(f"The deletion that came with it, operation {uuid}, did not succeed: {err}")


def _tell_parked(session: Session, operation: Operation) -> None:
    session.out.print(f"Accepted: operation {operation.uuid} is worked off when the VM stops")
    session.out.print(f"To wait for that:  coldframe operation wait {operation.uuid}")
    session.out.print(f"To withdraw it:    coldframe operation cancel {operation.uuid}")


def operation_facts(operation: Operation) -> list[tuple[str, object]]:
    """Return what a person wants to know of an operation."""
    done = operation.progress
    rows: list[tuple[str, object]] = [
        ("operation", operation.uuid),
        ("kind", operation.kind),
        ("vm", operation.vm),
        ("host", operation.host),
        ("snapshot", operation.snapshot),
        ("state", operation.state),
        ("step", operation.step),
        ("progress", f"{size(done.done_bytes)} of {size(done.total_bytes)}" if done.total_bytes else "-"),
        ("created", when(operation.created_at)),
        ("ended", when(operation.ended_at)),
    ]
    rows += [
        (name, value if isinstance(value, str) else msgspec.json.encode(value).decode())
        for name, value in operation.result.items()
    ]
    if operation.error:
        rows.append(("error", f"{operation.error.code}: {operation.error.detail}"))
    return rows
