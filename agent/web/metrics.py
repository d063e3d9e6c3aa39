"""Counts and times of requests, by route and never by path, so that a scan cannot fill the registry."""

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

MEDIA_TYPE = "text/plain"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpMetrics:
    """The HTTP metrics of one application, in the registry of that application."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route")
        self._requests = Counter("coldframe_http_requests", "Requests", (*labels, "status"), registry=registry)
        self._seconds = Histogram("coldframe_http_request_seconds", "Time to answer", labels, registry=registry)

    def observe(self, request: web.Request, status: int, took_s: float) -> None:
        """Count one answered request."""
        resource = request.match_info.route.resource
        method = request.method if request.method in _METHODS else "other"
        name = "none" if resource is None else resource.canonical
        self._requests.labels(method, name, str(status)).inc()
        self._seconds.labels(method, name).observe(took_s)


def exposition(registry: CollectorRegistry) -> web.Response:
    """Answer with the registry in Prometheus' text format."""
    return web.Response(
        body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )
