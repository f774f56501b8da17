"""Stories that training never saw. Importable without torch."""

import random

from distllm.engine.embedded.stories import tell


def held_out_texts(num_stories: int, seed: int) -> list[str]:
    """The same ones for the same seed."""
    rng = random.Random(f"held-out stories {seed}")
    return [tell(rng) for _ in range(num_stories)]
