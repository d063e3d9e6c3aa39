"""An agent in memory, over HTTP: the process boundary of the controller's tests.

Faults are switched on by the number of a call, so that a test can take a recording of a good run
(``agent.calls``) and break every call of it in turn. Long polls of the event log are not counted.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal
from uuid import UUID

import msgspec
from aiohttp import web

from agent.transactions.asked import is_same
from agent.wire.event import HostEvents
from agent.wire.host_file import HostFiles
from agent.wire.plan import PlannedStep, planned
from agent.wire.problem import Problem
from agent.wire.transaction import (
    ENDED,
    CloneRequest,
    ExportRequest,
    ImportRequest,
    PlaceRequest,
    RestoreRequest,
    RevertRequest,
    Transaction,
    TransactionRequest,
)
from agent.wire.upkeep import (
    CheckedImages,
    CheckImages,
    Leftovers,
    RemovedImages,
    RemovedLeftovers,
    RemoveImages,
    RemoveLeftovers,
)
from tests.controller import fake_archives, fake_moves
from tests.controller.fake_host import FakeHost
from tests.controller.fake_machine import FakeVm, Refusal, Running, answer, digest, host_file

TOKEN = "token-of-the-fake-agent"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Bringing = RevertRequest | CloneRequest | RestoreRequest | PlaceRequest | ImportRequest
Fault = Literal["refuse", "drop-before", "drop-after", "crash", "twice"]


class FakeAgent(FakeHost):
    """One host's HTTP application, with its faults."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.faults: dict[int, Fault] = {}
        self.refuse: dict[str, str] = {}
        self.dead = False
        self.on_call: Callable[[int, str], Awaitable[None]] | None = None

    def app(self) -> web.Application:
        """Return the application to serve."""
        app = web.Application(middlewares=[self._faults])
        vm, transaction = "/v1/vms/{vm}", "/v1/transactions/{id}"
        app.add_routes(
            [
                web.get("/v1/host", self._host),
                web.get("/v1/vms", self._vms),
                web.get(vm, self._vm),
                web.get(f"{vm}/disks", self._disks),
                web.get(f"{vm}/host-files", self._host_files),
                web.get(f"{vm}/host-files/{{type}}", self._host_file),
                web.get("/v1/events", self._events),
                web.get("/v1/transactions", self._transactions),
                web.post(f"{vm}/release", self._release),
                web.post("/v1/images/check", self._check_images),
                web.post("/v1/images/remove", self._remove_images),
                web.get("/v1/leftovers", self._leftovers),
                web.post("/v1/leftovers/remove", self._remove_leftovers),
                web.put(transaction, self._put),
                web.get(transaction, self._get),
                web.get(f"{transaction}/host-files/{{type}}", self._captured),
                web.put(f"{transaction}/host-files/{{type}}", self._upload),
                web.post(f"{transaction}/commit", self._commit),
                web.post(f"{transaction}/abort", self._post_abort),
                web.post(f"{transaction}/renew", self._renew),
                *fake_archives.ImageCalls(self).routes(),
            ]
        )
        return app

    @web.middleware
    async def _faults(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return problem(Refusal(401, "unauthorized").problem)
        watching = request.path == "/v1/events"
        name = _call_name(request)
        number = -1 if watching else len(self.calls)
        if not watching:
            self.calls.append(name)
        if self.on_call is not None and not watching:
            await self.on_call(number, name)
        fault = self.faults.get(number)
        if self.dead or fault in {"drop-before", "crash"}:
            self.dead = self.dead or fault == "crash"
            return _cut(request)
        if fault == "refuse" or name in self.refuse:
            return problem(Refusal(500, self.refuse.get(name, "storage-failed"), call=name).problem)
        response = await _handled(handler, request)
        if fault == "twice":
            response = await _handled(handler, request)
        return _cut(request) if fault == "drop-after" else response

    async def _host(self, request: web.Request) -> web.Response:
        return answer(self.facts)

    async def _vms(self, request: web.Request) -> web.Response:
        return answer({"items": [self.view(vm) for vm in self.vms.values()], "next": None})

    async def _vm(self, request: web.Request) -> web.Response:
        return answer(self.view(self._find(request)))

    async def _disks(self, request: web.Request) -> web.Response:
        return answer({"items": self.view(self._find(request)).disks, "next": None})

    async def _host_files(self, request: web.Request) -> web.Response:
        vm = self._find(request)
        return answer(
            HostFiles(
                items=[host_file(kind, data) for kind, data in vm.host_files.items() if kind not in vm.broken],
                expected=vm.expected,
                missing=self.missing(vm),
            )
        )

    async def _host_file(self, request: web.Request) -> web.Response:
        vm, kind = self._find(request), request.match_info["type"]
        data = {str(k): v for k, v in vm.host_files.items()}.get(kind)
        reasons = {str(k): v for k, v in vm.broken.items()}
        if kind in reasons:
            raise Refusal(409, "host-file-damaged", type=kind, reason=reasons[kind])
        if data is None:
            raise Refusal(404, "host-file-not-found", type=kind)
        etag = f'"{digest(data)}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return content(data)

    async def _events(self, request: web.Request) -> web.Response:
        after = int(request.query.get("after", "0"))
        if not any(event.seq > after for event in self.events):
            self.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), float(request.query.get("wait", "0")))
        items = [event for event in self.events if event.seq > after]
        last = self.oldest - 1 + len(self.events)
        following = items[-1].seq if items else min(after, last)
        return answer(HostEvents(items=items, next=following, log=self.log, oldest=self.oldest))

    async def _put(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=TransactionRequest)
        key = UUID(request.match_info["id"])
        if (known := self.transactions.get(key)) is not None:
            if not is_same(known.request, wanted):
                raise Refusal(409, "transaction-mismatch", id=str(key))
            if known.view.state == "aborted" and known.view.error is not None:
                return problem(known.view.error)
            return answer(known.view)
        if isinstance(wanted, PlaceRequest | ImportRequest | ExportRequest):  # of no domain that is there
            self.transactions[key] = fake_moves.prepare_apart(self, wanted, self.begun(key, wanted))
            return answer(self.transactions[key].view)
        vm = self.find_vm(wanted.source if isinstance(wanted, CloneRequest) else wanted.vm)
        if request.query.get("dry_run") == "true":
            return answer(self.foresee(key, vm, wanted))
        if not isinstance(wanted, CloneRequest):
            self.check_free(vm)
        self.transactions[key] = self.prepare(key, vm, wanted)
        return answer(self.transactions[key].view)

    async def _get(self, request: web.Request) -> web.Response:
        return answer(self._lingering(self._transaction(request).view))

    def _lingering(self, view: Transaction) -> Transaction:
        """Show a commit as still under way, ``linger`` times."""
        if view.state != "committed" or self.linger == 0:
            return view
        self.linger -= 1
        return msgspec.structs.replace(view, state="committing", ended_at=None)

    async def _captured(self, request: web.Request) -> web.Response:
        running = self._transaction(request)
        captured = {str(k): v for k, v in running.captured.items()}
        if request.match_info["type"] not in captured or running.view.state in ENDED:
            raise Refusal(404, "host-file-not-found", type=request.match_info["type"])
        return content(captured[request.match_info["type"]])

    async def _upload(self, request: web.Request) -> web.Response:
        running, data = self._transaction(request), await request.read()
        assert isinstance(running.request, _Bringing)
        for ref in running.request.host_files:
            if ref.type == request.match_info["type"] and ref.sha256 == digest(data):
                running.uploaded[ref.type] = data
                return answer(running.view)
        raise Refusal(422, "hash-mismatch", type=request.match_info["type"])

    async def _commit(self, request: web.Request) -> web.Response:
        running = self._transaction(request)
        if running.view.state == "aborted":
            code = running.view.error.code if running.view.error else "transaction-ended"
            raise Refusal(409, code)
        if running.view.state == "prepared":
            self.switch(running)
        return answer(self._lingering(running.view))

    async def _post_abort(self, request: web.Request) -> web.Response:
        running = self._transaction(request)
        if running.view.state == "committed":
            raise Refusal(409, "transaction-ended")
        self.abort(running, None)
        return answer(running.view)

    async def _renew(self, request: web.Request) -> web.Response:
        running = self._transaction(request)
        if running.view.state in ENDED:
            raise Refusal(409, "transaction-ended")
        return answer(running.view)

    async def _transactions(self, request: web.Request) -> web.Response:
        return answer({"items": [running.view for running in self.transactions.values()], "next": None})

    async def _release(self, request: web.Request) -> web.Response:
        vm = self._find(request)
        vm.guard = None
        return answer(self.view(vm))

    async def _check_images(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=CheckImages)
        return answer(CheckedImages(items=[self.image_state(path, deep=wanted.deep) for path in wanted.paths]))

    async def _leftovers(self, request: web.Request) -> web.Response:
        return answer(Leftovers(items=self.leftovers, complete=self.complete))

    async def _remove_leftovers(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=RemoveLeftovers)
        removed = [one.path for one in self.leftovers if one.removable and one.path in wanted.paths]
        self.leftovers = [one for one in self.leftovers if one.path not in removed]
        return answer(RemovedLeftovers(removed=removed))

    async def _remove_images(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=RemoveImages)
        paths = {one.path for one in wanted.images if one.path in self.files}
        used = {path for vm in self.vms.values() for top in vm.tops.values() for path in self.chain(top)}
        standing = {file.backing for path, file in self.files.items() if path not in paths}
        needed = paths & (used | standing)
        if request.query.get("dry_run") == "true":
            steps = [PlannedStep(action="remove-image", name="remove the image", path=path) for path in sorted(paths)]
            refused = [Refusal(409, "image-refused", path=path).problem for path in sorted(needed)]
            return answer(planned("images-remove", steps, refused))
        if needed:
            raise Refusal(409, "image-refused", path=min(needed))
        for path in paths:
            del self.files[path]
        return answer(RemovedImages(removed=sorted(paths)))

    def _find(self, request: web.Request) -> FakeVm:
        return self.find_vm(UUID(request.match_info["vm"]))

    def _transaction(self, request: web.Request) -> Running:
        key = UUID(request.match_info["id"])
        if key not in self.transactions:
            raise Refusal(404, "transaction-not-found", id=str(key))
        return self.transactions[key]


async def _handled(handler: Handler, request: web.Request) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return problem(refusal.problem)


def content(data: bytes) -> web.Response:
    """Return the bytes of a host file."""
    sha256 = digest(data)
    return web.Response(body=data, headers={"ETag": f'"{sha256}"', "X-Content-SHA256": sha256})


def problem(told: Problem) -> web.Response:
    """Return an error answer."""
    body = msgspec.json.encode(told)
    return web.Response(body=body, status=told.status, content_type="application/problem+json")


def _call_name(request: web.Request) -> str:
    resource = request.match_info.route.resource
    dry_run = "?dry_run" if request.query.get("dry_run") == "true" else ""
    return f"{request.method} {resource.canonical if resource is not None else request.path}{dry_run}"


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
