"""Streams that outlast their connections: GET and DELETE /v1/streams/{request id}, and the headers of a POST."""

import time
from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from distllm.server.answer_head import Endpoint, new_request_id
from distllm.server.errors import InvalidRequest, shown
from distllm.server.generation import choose_seeds
from distllm.server.generation_plan import GenerationPlan
from distllm.server.handlers.direct_route import DirectRoute
from distllm.server.protocol.sampling import SamplingFields
from distllm.server.resuming.event_id import HEADER, REMEDY, EventId
from distllm.server.resuming.kept_stream import KeptStream, NotKept
from distllm.server.resuming.stream_head import ServedModel, StreamHead
from distllm.server.routing.router import Routing
from distllm.server.service import service_of
from distllm.server.streaming import KEEP_ALIVE_AMONG_IDS, EventStream

router = APIRouter(route_class=DirectRoute)

_ASKING_HEADER = "x-resumable"
_ID_HEADER = "x-stream-id"
"""Tells a client that its stream can be resumed, and where, before the first event does."""
_ANSWERS = {"true": True, "false": False}
_NO_HEADERS: Mapping[str, str] = {}


@router.get("/v1/streams/{request_id}")
async def follow_stream(request: Request) -> Response:
    """The events after the one in Last-Event-ID, or all; 204, which ends an EventSource, where none follows."""
    if resumed := resume(request):
        return resumed
    return _events(request, _find(request, request.path_params["request_id"]), None)


@router.delete("/v1/streams/{request_id}")
async def end_stream(request: Request) -> Response:
    """End a stream that is not wanted any more."""
    service_of(request).streams.remove(_find(request, request.path_params["request_id"]))
    return Response(status_code=204)


def resume(request: Request) -> Response | None:
    """The rest of the stream that Last-Event-ID names; None for a request without it. The body is not looked at.

    Raises InvalidRequest or StreamNotFound.
    """
    text = request.headers.get(HEADER)
    if not text:
        return None
    event_id = EventId.parse(text)
    named = request.path_params.get("request_id", event_id.request_id)
    if named != event_id.request_id:
        raise InvalidRequest(f"{HEADER} is of another stream than {shown(named)!r}; {REMEDY}", HEADER)
    stream = _find(request, event_id.request_id)
    stream.check(event_id.counts)
    return _events(request, stream, event_id)


async def begin_resumable(
    request: Request, endpoint: Endpoint, plan: GenerationPlan, asked: SamplingFields, routing: Routing
) -> Response | Mapping[str, str]:
    """A stream that can be resumed, on its route; where there is none, headers by which an ordinary one says why.

    They are empty where none was asked for.
    """
    service = service_of(request)
    settings = service.settings.resuming
    if not _is_asked_for(request, settings.are_all_resumable):
        return _NO_HEADERS
    if settings.grace_s == 0:
        return _not_resumable("this server keeps no streams: --resume-grace-s is 0")
    info = routing.route.info
    head = StreamHead(
        request_id=new_request_id(endpoint),
        endpoint=endpoint,
        owner=_owner(request),
        plan=plan,
        answer=service.answer_head(asked, routing),
        seeds=choose_seeds(plan),
        arrival_s=time.time(),
        served=ServedModel.of(service.settings.model_names[0], info),
        numerics=info.numerics,
        route=routing.route.name,
        is_pinned=routing.is_pinned,
    )
    try:
        stream = await service.streams.begin(head, routing)
    except NotKept as not_kept:
        return _not_resumable(str(not_kept))
    return _events(request, stream, None, routing.forecast.headers)


def _not_resumable(reason: str) -> Mapping[str, str]:
    return {_ASKING_HEADER: "false", f"{_ASKING_HEADER}-reason": reason}


def _events(
    request: Request, stream: KeptStream, after: EventId | None, headers: Mapping[str, str] = _NO_HEADERS
) -> Response:
    service = service_of(request)
    counts = (0,) * stream.head.num_choices if after is None else after.counts
    if stream.is_read_whole(counts):
        return Response(status_code=204)
    if after is not None:
        service.streams.counts.resumed += 1
    reader = stream.reader(counts)
    return EventStream(
        reader.frames(),
        reader,
        service.settings.keep_alive_s,
        keep_alive=KEEP_ALIVE_AMONG_IDS,
        headers={_ID_HEADER: stream.head.request_id, **headers},
    )


def _find(request: Request, request_id: str) -> KeptStream:
    return service_of(request).streams.find(request_id, _owner(request))


def _owner(request: Request) -> str:
    """The digest of the key that was checked, "" where none is asked for."""
    owner: str = getattr(request.state, "owner", "")
    return owner


def _is_asked_for(request: Request, is_default: bool) -> bool:
    text = request.headers.get(_ASKING_HEADER)
    if text is None:
        return is_default
    answer = _ANSWERS.get(text.strip().lower())
    if answer is None:
        raise InvalidRequest(f"{_ASKING_HEADER} must be true or false, not {shown(text)!r}", _ASKING_HEADER)
    return answer
