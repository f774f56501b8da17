"""Shows how far an offline batch has come: prompts done, tokens a second."""

import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm


class BatchBar:
    """A tqdm bar over prompts. Not shown where `is_shown` is False."""

    def __init__(self, num_prompts: int, is_shown: bool) -> None:
        self._bar: tqdm[NoReturn] = tqdm(
            total=num_prompts, desc="Generating", unit="prompt", dynamic_ncols=True, disable=not is_shown
        )
        self._started_s = time.monotonic()
        self._num_tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def add_tokens(self, count: int) -> None:
        self._num_tokens += count
        rate = self._num_tokens / max(time.monotonic() - self._started_s, 1e-9)
        self._bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
        self._bar.update(0)

    def add_prompt(self) -> None:
        """One more prompt is done."""
        self._bar.update(1)
