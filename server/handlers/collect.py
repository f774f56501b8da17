"""A whole generation gathered, for answers that are not streamed."""

from dataclasses import dataclass, field

from distllm.server.choice import ScoredToken
from distllm.server.generation import Generation


@dataclass(slots=True)
class CollectedChoice:
    """One finished choice under its index in the response."""

    index: int
    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: str | None = None


async def collect(generation: Generation) -> list[CollectedChoice]:
    """The choices to return, in order; of best_of the best by mean log-probability. Raises GenerationFailed."""
    pieces: list[list[str]] = [[] for _ in generation.choices]
    collected = [CollectedChoice(choice.index) for choice in generation.choices]
    async for deltas in generation:
        for delta in deltas:
            choice = collected[delta.index]
            pieces[delta.index].append(delta.text)
            choice.tokens.extend(delta.tokens)
            choice.finish_reason = delta.finish_reason or choice.finish_reason
    for choice, texts in zip(collected, pieces, strict=True):
        choice.text = "".join(texts)
    return _best(generation, collected) if generation.plan.is_ranked else collected


def _best(generation: Generation, collected: list[CollectedChoice]) -> list[CollectedChoice]:
    """The best n of each prompt, best first, with the indices that n choices a prompt have."""
    plan = generation.plan
    best: list[CollectedChoice] = []
    for first in range(0, len(collected), plan.num_sampled):
        of_prompt = collected[first : first + plan.num_sampled]
        ranked = sorted(of_prompt, key=lambda choice: generation.choices[choice.index].mean_logprob, reverse=True)
        best.extend(ranked[: plan.n])
    for index, choice in enumerate(best):
        choice.index = index
    return best
