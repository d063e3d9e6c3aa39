"""Which surveyor looks around for which request."""

from uuid import UUID

from agent.host import files
from agent.host.clone_xml import check_name
from agent.host.hypervisor import Hypervisor
from agent.limits import Limits
from agent.transactions.clone import CloneSurveyor
from agent.transactions.exports import ExportSurveyor
from agent.transactions.imports import ImportSurveyor
from agent.transactions.journal import AnyRequest
from agent.transactions.place import PlaceSurveyor
from agent.transactions.steps import Work
from agent.transactions.survey import Survey, Surveyor
from agent.web.errors import Error
from agent.wire.transaction import CloneRequest, ExportRequest, ImportRequest, PlaceRequest


async def name_of(request: AnyRequest, hypervisor: Hypervisor) -> str:
    """Return the domain's name; that of a new one is checked first, one that moves or is only read is told."""
    if isinstance(request, ExportRequest | PlaceRequest):
        return request.name
    if isinstance(request, CloneRequest | ImportRequest):
        check_name(request.name)
        return request.name
    return (await hypervisor.domain(request.vm)).name


async def survey(
    transaction: UUID, request: AnyRequest, work: Work, limits: Limits, objections: list[Error] | None = None
) -> Survey:
    """Look at everything that a request needs, and plan; ``objections`` as for Surveyor.

    What cannot be read for want of a descriptor or for a failing disk is told as the storage's failure.
    """
    with files.storage("reading"):
        match request:
            case CloneRequest():
                return await CloneSurveyor(transaction, request, work, limits).survey()
            case ImportRequest():
                return await ImportSurveyor(transaction, request, work, limits).survey()
            case ExportRequest():
                return await ExportSurveyor(transaction, request, work, limits).survey()
            case PlaceRequest():
                return await PlaceSurveyor(transaction, request, work, limits).survey()
            case _:
                return await Surveyor(transaction, request, work, limits, objections).survey()
