"""What the scheduler counts since the engine started."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Fields as in EngineStats, less `_total`."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
