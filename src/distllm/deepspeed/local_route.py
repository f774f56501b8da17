"""The engine of this machine as one of two routes: whether it is there, and how fast it has been."""

import random

from distllm.deepspeed.engine import InferenceEngine
from distllm.engine.pipeline.placement.routing import RouteState
from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.stats import EngineStats
from distllm.server.routing.pace import Pace

_PROBE_TOKENS = 128
_PROBE_NEW_TOKENS = 12
_PROBE_TOGETHER = 8


class LocalRoute:
    """With `engine`, or with the reason why there is none."""

    def __init__(self, engine: InferenceEngine | None, failure: str | None = None) -> None:
        self.engine = engine
        self._failure = failure
        self._pace = Pace(EngineStats())

    def route_state(self, num_texts: int) -> RouteState:
        """What is to be expected of so many more texts. The first time a short request measures it."""
        if self.engine is None:
            return _state(tpot_s=1.0, prefill_tokens_per_s=1.0, unavailable=self._failure)
        if not self._pace.is_measured:
            self._probe(self.engine)
        stats = self.engine.llm.stats
        self._pace.note(stats)
        tpot_s = self._pace.tpot_s(stats.num_running + stats.num_waiting + num_texts)
        prefill_tokens_per_s = self._pace.prefill_tokens_per_s
        assert tpot_s is not None
        assert prefill_tokens_per_s is not None
        return _state(tpot_s, prefill_tokens_per_s)

    def _probe(self, engine: InferenceEngine) -> None:
        """Of random tokens, so that none is cached; more than once where the engine reports late.

        Then several at once, which shows what more of them cost.
        """
        num_prompt = min(_PROBE_TOKENS, engine.info.max_model_len // 2)
        params = SamplingParams(max_tokens=min(_PROBE_NEW_TOKENS, num_prompt), temperature=0.0, ignore_eos=True)
        while not self._pace.is_measured:
            self._run(engine, 1, num_prompt, params)
        self._run(engine, _PROBE_TOGETHER, num_prompt, params)

    def _run(self, engine: InferenceEngine, num_prompts: int, num_prompt: int, params: SamplingParams) -> None:
        prompts = [
            [random.randrange(engine.info.vocab_size) for _ in range(num_prompt)] for _ in range(num_prompts)
        ]
        engine.llm.generate(prompts, params, use_tqdm=False)
        self._pace.note(engine.llm.stats)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()


def _state(tpot_s: float, prefill_tokens_per_s: float, unavailable: str | None = None) -> RouteState:
    return RouteState("local", prefill_tokens_per_s, tpot_s, queue_s=0.0, unavailable=unavailable)
