"""The HTTP application: routes, and the layers around them. Starts nothing; the launcher owns the engine."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from distllm.server.auth import AuthMiddleware
from distllm.server.early_requests import EarlyRequests
from distllm.server.error_boundary import ErrorBoundary
from distllm.server.errors import handle_error
from distllm.server.handlers import chat, completions, health, meta, models, route_explain, tokenization
from distllm.server.handlers import streams as stream_routes
from distllm.server.http_metrics import HttpMetricsMiddleware
from distllm.server.metrics import Metrics
from distllm.server.ports import Engine
from distllm.server.request_id import RequestIdMiddleware
from distllm.server.resuming.collector import StreamsCollector
from distllm.server.resuming.kept_streams import KeptStreams
from distllm.server.resuming.stream_log import StreamLog
from distllm.server.routing.hybrid_engine import HybridEngine
from distllm.server.routing.probing import Prober
from distllm.server.routing.route import EngineRoute
from distllm.server.routing.router import Router
from distllm.server.service import Service
from distllm.server.settings import FrontEndSettings, SamplingDefaults
from distllm.server.tokenizer import Tokenizer


def create_app(
    engine: Engine | HybridEngine,
    tokenizer: Tokenizer,
    settings: FrontEndSettings,
    defaults: SamplingDefaults | None = None,
    log: StreamLog | None = None,
) -> FastAPI:
    """The app over a started engine. Requests that come before it is ready get 503, or wait if it waits for peers.

    Resumable streams are kept in `app.state.service.streams`, and written to `log` where there is one.
    """
    metrics = Metrics(engine, settings.model_names[0])
    router = engine.router if isinstance(engine, HybridEngine) else _only_route(engine, settings)
    router.on_move = metrics.routes.count_move
    streams = KeptStreams(settings.resuming, engine, router, tokenizer, metrics, settings.model_names[0], log)
    metrics.register(StreamsCollector(streams))
    app = FastAPI(title="distllm", redirect_slashes=False)
    app.state.service = Service(
        engine=engine,
        router=router,
        prober=engine.prober if isinstance(engine, HybridEngine) else Prober(),
        tokenizer=tokenizer,
        settings=settings,
        defaults=defaults or SamplingDefaults(),
        metrics=metrics,
        streams=streams,
        early=EarlyRequests(engine, settings),
    )
    for handler in (completions, chat, stream_routes, route_explain, models, tokenization, health, meta):
        app.router.routes.extend(handler.router.routes)
    app.add_exception_handler(HTTPException, handle_error)
    # the last one added is the outermost
    app.add_middleware(AuthMiddleware, api_keys=settings.api_keys)
    app.add_middleware(ErrorBoundary)
    app.add_middleware(HttpMetricsMiddleware, metrics=metrics)
    app.add_middleware(RequestIdMiddleware)
    return app


def _only_route(engine: Engine, settings: FrontEndSettings) -> Router:
    limits = (settings.max_running, settings.max_live, settings.token_budget)
    route = EngineRoute(settings.route, engine, *limits)
    return Router([route], settings.target)
