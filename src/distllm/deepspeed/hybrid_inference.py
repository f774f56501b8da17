"""HybridInference: one name for a model that runs on the ranks of this machine, and on several machines."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from distllm.deepspeed.config import DeepSpeedConfig
from distllm.deepspeed.coordinator_client import CoordinatorClient
from distllm.deepspeed.engine import InferenceEngine
from distllm.deepspeed.generation_options import GenerationOptions, sampling_params
from distllm.deepspeed.local_route import LocalRoute
from distllm.deepspeed.memory_advice import OutOfMemory
from distllm.deepspeed.refusal import InvalidOption
from distllm.deepspeed.text_generator import TextGenerator, check_prompts
from distllm.engine.pipeline.placement.routing import LatencyTarget, NoRoute, RouteDecision, choose_route
from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.refusals import EngineUnavailable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("distllm.deepspeed")

_CHARACTERS_A_TOKEN = 4
"""About. Only where no tokenizer is at hand, and the reason of a decision says so then."""


class HybridInference(TextGenerator):
    """A model on this machine, and with a `coordinator_client` on others as well: each call takes one route.

    That is the cheapest that is predicted to meet the target, else the fastest. `decision` is the latest. Prompts
    are as long as the tokenizer of the engine here counts, else the server's; of a server that does not say, and
    without an engine, a token is taken to be four characters.
    """

    def __init__(
        self,
        model: "PreTrainedModel | str | Path | None" = None,
        tokenizer: Any = None,
        coordinator_client: CoordinatorClient | None = None,
        model_id: str | Path | None = None,
        tensor_parallel_size: int = 1,
        use_deepspeed: bool = True,
        use_quantization: bool | None = None,
        quantization_config: Mapping[str, Any] | None = None,
        dtype: Any = "auto",
        *,
        target_ttft_s: float | None = 1.0,
        target_tpot_s: float | None = 0.1,
    ) -> None:
        """Start the engine of `model`, or where there is none, of `model_id`, a path or a name.

        With `use_deepspeed` the model is divided over `tensor_parallel_size` ranks; without it runs on one. Weights
        are quantized where `use_quantization` is True, or `quantization_config` is given. `coordinator_client`
        serves the same model elsewhere, and stays the caller's to close; with one, a model that does not fit here
        runs there alone. Raises InvalidOption, and what InferenceEngine raises.
        """
        if coordinator_client is not None and not isinstance(coordinator_client, CoordinatorClient):
            raise InvalidOption("coordinator_client", "must be a CoordinatorClient(url, api_key)")
        chosen = model_id if model is None else model
        if chosen is None:
            raise InvalidOption("model", "is missing: give model, or model_id")
        if not use_deepspeed and tensor_parallel_size != 1:
            raise InvalidOption("tensor_parallel_size", "above 1 needs use_deepspeed=True")
        config = DeepSpeedConfig(
            tensor_parallel_size,
            dtype,
            use_quantization=use_quantization,
            quantization_config=quantization_config,
        )
        self.model_id = None if model_id is None else str(model_id)
        self.decision: RouteDecision | None = None
        self._target = _target(target_ttft_s, target_tpot_s)
        self._there = coordinator_client
        try:
            self._here = LocalRoute(InferenceEngine(chosen, config, tokenizer))
        except OutOfMemory as error:
            if coordinator_client is None:
                raise
            logger.warning("the model runs on %s alone: %s", coordinator_client.url, error)
            self._here = LocalRoute(None, str(error))

    def explain(self, prompts: str | list[str], **options: Unpack[GenerationOptions]) -> RouteDecision:
        """Where `generate` would run and why; nothing is generated. Raises EngineUnavailable where nothing can."""
        return self._decide(check_prompts(prompts), options)

    def close(self) -> None:
        """End the engine and its ranks. Does nothing the second time."""
        self._here.close()

    def _answers(self, texts: list[str], options: GenerationOptions) -> list[str]:
        """One that the server does not take runs here after all."""
        chosen = self._choose(texts, options)
        try:
            return chosen._answers(texts, options)
        except EngineUnavailable as unavailable:
            return self._instead(chosen, unavailable)._answers(texts, options)

    def _pieces(self, text: str, options: GenerationOptions) -> Iterator[str]:
        chosen = self._choose([text], options)
        try:
            return chosen._pieces(text, options)
        except EngineUnavailable as unavailable:
            return self._instead(chosen, unavailable)._pieces(text, options)

    def _choose(self, texts: list[str], options: GenerationOptions) -> TextGenerator:
        """Where a call runs. Raises EngineUnavailable."""
        if self._there is None:
            assert self._here.engine is not None
            return self._here.engine
        self.decision = self._decide(texts, options)
        logger.debug("%s", self.decision.reason)
        if self.decision.route == "pipeline":
            return self._there
        assert self._here.engine is not None
        return self._here.engine

    def _instead(self, chosen: TextGenerator, unavailable: EngineUnavailable) -> TextGenerator:
        """The engine here in the place of a server that takes no requests. Raises what happened where it is not."""
        if chosen is not self._there or self._here.engine is None:
            raise unavailable
        logger.warning("the call runs here: %s", unavailable.reason)
        return self._here.engine

    def _decide(self, texts: list[str], options: GenerationOptions) -> RouteDecision:
        params = sampling_params(options, SamplingParams(max_tokens=None))
        states, counted_there = [self._here.route_state(len(texts))], None
        if self._there is not None:
            prospect = self._there.prospect(texts, options)
            states.append(prospect.state)
            counted_there = prospect.prompt_tokens
        last = None if self.decision is None else self.decision.route
        num_prompt, how = self._count(texts, counted_there)
        try:
            decision = choose_route(states, max(1, num_prompt), params.max_tokens or 1, self._target, last)
        except NoRoute as nothing:
            raise EngineUnavailable(str(nothing)) from None
        return replace(decision, reason=f"{decision.reason} The prompt has {num_prompt} tokens, {how}.")

    def _count(self, texts: list[str], counted_there: int | None) -> tuple[int, str]:
        """Tokens of all texts, and who says so."""
        if self._here.engine is not None:
            return self._here.engine.llm.count_tokens(texts), "as the tokenizer here counts"
        if counted_there is not None:
            return counted_there, "as the server counts"
        return sum(len(text) for text in texts) // _CHARACTERS_A_TOKEN, "if one is four characters"


def _target(ttft_s: float | None, tpot_s: float | None) -> LatencyTarget:
    for option, seconds in (("target_ttft_s", ttft_s), ("target_tpot_s", tpot_s)):
        if seconds is not None and (type(seconds) not in (int, float) or not seconds > 0):
            raise InvalidOption(option, f"must be seconds above 0, or None for no target, not {seconds!r}")
    return LatencyTarget(ttft_s, tpot_s)
