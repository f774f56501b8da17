"""What an engine reports while it starts and when it is lost."""

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of it that is done, in [0, 1]."""

OnLost = Callable[[str], None]
"""Called in a thread of its own, with the reason in one line, when processes that an engine needs are lost."""
