"""A controller in memory: it answers what a test tells it to, and remembers what it was asked."""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
from aiohttp import web

from agent.wire.plan import Plan


@dataclass(frozen=True)
class Asked:
    """One request as it arrived; the path is as sent, with its quoting."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class FakeController:
    """Serve prepared answers on a loopback port, in a thread of its own. The last answer of a route stays."""

    answers: dict[tuple[str, str], list[web.Response]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    plan_changes: bool = False

    def answer(
        self, method: str, path: str, body: Any = None, status: int = 200, kind: str = "application/json"
    ) -> None:
        """Prepare one more answer; bytes are sent as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        response = web.Response(body=data, status=status, content_type=kind)
        self.answers.setdefault((method, path), []).append(response)

    def page(self, path: str, items: list[Any]) -> None:
        """Prepare a list of one page."""
        self.answer("GET", path, {"items": items, "next": None})

    def sent(self, method: str, path: str) -> Asked:
        """Return the one such request."""
        (one,) = [one for one in self.asked if (one.method, one.path) == (method, path)]
        return one

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        data = await request.read()
        path = request.rel_url.raw_path
        body = msgspec.json.decode(data) if data and request.content_type == "application/json" else None
        self.asked.append(Asked(request.method, path, dict(request.query), dict(request.headers), body))
        if self.plan_changes and request.query.get("dry_run") == "true":
            return web.Response(body=msgspec.json.encode(Plan.example()), content_type="application/json")
        prepared = self.answers.get((request.method, path))
        if not prepared:
            return web.Response(status=500, text=f"the test prepared no answer for {request.method} {path}")
        kept = prepared.pop(0) if len(prepared) > 1 else prepared[0]
        return web.Response(body=kept.body, status=kept.status, content_type=kept.content_type)
