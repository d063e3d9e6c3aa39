"""Snapshots leave a played host as archives, and come to it as such."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
from aiohttp import web

from agent.wire.archive import ReceivedImage, SentImage, SentImages
from agent.wire.transaction import ENDED, ExportRequest, FrozenFile, ImportRequest, Transaction
from tests.controller.fake_machine import SIZE, FakeFile, FakeVm, Refusal, Running, answer, digest

if TYPE_CHECKING:
    from tests.controller.fake_host import FakeHost


def prepare(host: FakeHost, wanted: ExportRequest | ImportRequest, view: Transaction) -> Running:
    """Begin an export, of files that must be as they were, or an import of a VM that must not be there."""
    if isinstance(wanted, ExportRequest):
        for volume in wanted.volumes:
            if volume.path not in host.files or host.fingerprint(volume.path) != volume.fingerprint:
                raise Refusal(409, "frozen-file-altered", target=volume.target, path=volume.path)
        return Running(wanted, view)
    if wanted.vm in host.vms:
        raise Refusal(409, "domain-exists", name=wanted.name)
    volumes = [
        FrozenFile(
            target=image.target,
            path=f"/images/cf-{wanted.snapshot}.{image.target}.qcow2",
            format="qcow2",
            backing=None,
            virtual_size_bytes=SIZE,
            allocated_bytes=SIZE // 4,
            fingerprint=f"{SIZE}:0",
            overlay=f"/images/cf-{view.id}.{image.target}.qcow2",
        )
        for image in wanted.images
    ]
    return Running(wanted, msgspec.structs.replace(view, volumes=volumes, domain_xml=wanted.domain_xml))


def switch(host: FakeHost, running: Running, wanted: ImportRequest) -> None:
    """Define what was received."""
    if waiting := {image.target for image in wanted.images} - set(running.images):
        raise Refusal(409, "image-not-received", images=sorted(waiting))
    if missing := {ref.type for ref in wanted.host_files} - set(running.uploaded):
        raise Refusal(409, "host-file-not-uploaded", types=sorted(missing))
    for volume in running.view.volumes:
        host.files[volume.path] = FakeFile(backing=None)
        host.files[volume.overlay] = FakeFile(backing=volume.path)
    host.vms[wanted.vm] = FakeVm(
        uuid=wanted.vm,
        name=wanted.name,
        tops={volume.target: volume.overlay for volume in running.view.volumes},
        host_files=dict(running.uploaded),
        expected=sorted(running.uploaded),
    )


class ImageCalls:
    """The calls that carry images."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        images = "/v1/transactions/{id}/images"
        one = f"{images}/{{target}}/{{position}}"
        return [web.get(images, self._list), web.get(one, self._give), web.put(one, self._take)]

    async def _list(self, request: web.Request) -> web.Response:
        sizes = {target: len(data) for target, data in self._sent(request).items()}
        items = [
            SentImage(target=target, position=0, size_bytes=size, virtual_size_bytes=SIZE)
            for target, size in sizes.items()
        ]
        return answer(SentImages(items=items))

    async def _give(self, request: web.Request) -> web.Response:
        return web.Response(body=self._sent(request)[request.match_info["target"]])

    async def _take(self, request: web.Request) -> web.Response:
        running, data = self._prepared(request), await request.read()
        target = request.match_info["target"]
        running.images[target] = data
        return answer(ReceivedImage(target=target, position=0, size_bytes=len(data), sha256=digest(data)))

    def _sent(self, request: web.Request) -> dict[str, bytes]:
        wanted = self._prepared(request).request
        assert isinstance(wanted, ExportRequest)
        return {volume.target: f"what {volume.path} holds".encode() * 99 for volume in wanted.volumes}

    def _prepared(self, request: web.Request) -> Running:
        found = self._host.transactions.get(UUID(request.match_info["id"]))
        if found is None or found.view.state in ENDED:
            raise Refusal(409, "transaction-ended")
        return found
