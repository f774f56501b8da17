"""What every handler needs: the engine, the tokenizer, the settings, and how a body becomes a generation."""

import hashlib
import time
from dataclasses import dataclass, field

from starlette.requests import Request

from distllm.engine.interface import ExecutorInfo
from distllm.server.answer_head import AnswerHead
from distllm.server.early_requests import EarlyRequests
from distllm.server.errors import InvalidRequest, ModelNotFound
from distllm.server.generation import Generation, choose_seeds
from distllm.server.generation_plan import GenerationPlan, Limits, prompt_too_long
from distllm.server.metrics import Metrics
from distllm.server.ports import EngineView
from distllm.server.protocol.chat import ChatPrompt
from distllm.server.protocol.sampling import SamplingFields
from distllm.server.resuming.kept_streams import KeptStreams
from distllm.server.routing.probing import Prober
from distllm.server.routing.router import Router, Routing
from distllm.server.settings import FrontEndSettings, SamplingDefaults
from distllm.server.tokenizer import TextTooLong, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One served model: `engine` is what runs it, as a whole, and `router` knows every way into it."""

    engine: EngineView
    router: Router
    prober: Prober
    tokenizer: Tokenizer
    settings: FrontEndSettings
    defaults: SamplingDefaults
    metrics: Metrics
    streams: KeptStreams
    early: EarlyRequests
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def limits(self) -> Limits:
        """Raises EngineUnavailable before the model is loaded."""
        return Limits.of(self.engine.info)

    def fingerprint(self, info: ExecutorInfo) -> str:
        """OpenAI's system_fingerprint: equal where model and numerics are, so that equal seeds give equal text."""
        text = f"{self.settings.model_names[0]} {info.model_type} {info.dtype} {info.numerics}"
        return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:10]

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFound for a model that is not served; None stands for whichever is."""
        if name is not None and name not in self.settings.model_names:
            raise ModelNotFound(name, self.settings.model_names)

    async def encode_prompt(self, text: str, field: str) -> list[int]:
        """Token ids of a prompt; an empty one is the start of a document. Raises InvalidRequest."""
        max_tokens = self.limits.max_model_len
        try:
            token_ids = await self.tokenizer.encode(text, max_tokens=max_tokens)
        except TextTooLong as error:
            raise prompt_too_long(max_tokens, f"at least {error.least_tokens}", field) from None
        if token_ids:
            return token_ids
        start = self.tokenizer.document_start
        starts = self.defaults.eos_token_ids if start is None else (start,)
        if not starts:
            raise InvalidRequest("prompt is empty, and this model has no token that begins a document", field)
        return [starts[0]]

    async def encode_chat(self, asked: ChatPrompt, max_tokens: int | None = None) -> list[int]:
        """Token ids of a conversation. Raises NoChatTemplate or InvalidRequest."""
        continues = bool(asked.continue_final_message)
        adds = not continues if asked.add_generation_prompt is None else asked.add_generation_prompt
        messages = [message.for_template() for message in asked.messages]
        try:
            return await self.tokenizer.encode_chat(
                messages, adds, continues, asked.chat_template_kwargs, max_tokens
            )
        except TextTooLong as error:
            assert max_tokens is not None
            raise prompt_too_long(max_tokens, f"at least {error.least_tokens}", "messages") from None

    def answer_head(self, asked: SamplingFields, routing: Routing) -> AnswerHead:
        """What the objects of an answer begun now have in common. Raises EngineUnavailable."""
        return AnswerHead(asked.model, int(time.time()), self.fingerprint(routing.route.info), asked.include_usage)

    def choose_route(self, plan: GenerationPlan, asked: str | None) -> Routing:
        """Where a generation goes; `asked` is the route that its client wants. Raises what Router.choose raises."""
        routing = self.router.choose(plan, asked)
        self.metrics.routes.count(routing.forecast)
        for other in self.router.routes:
            if other is not routing.route:
                self.prober.refresh(other)
        return routing

    def generation(self, plan: GenerationPlan, request_id: str, routing: Routing) -> Generation:
        """A generation that begins now, not yet started."""
        seeds = choose_seeds(plan)
        return Generation(
            routing, routing.forecast, self.tokenizer, self.metrics, plan, request_id, seeds, time.time()
        )


def service_of(request: Request) -> Service:
    """The service of the app that handles this request."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
