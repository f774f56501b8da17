"""When requests arrive. Open loop: arrivals do not wait for answers."""

import math

import numpy as np


def arrival_times_s(num_requests: int, rate: float, burstiness: float, rng: np.random.Generator) -> list[float]:
    """Seconds after the start at which each request is sent, rising.

    `rate` is requests a second; infinity sends all at once. Gaps follow a gamma distribution of shape `burstiness`
    and mean 1/rate: 1 is a Poisson process, less comes in bursts, more is more even (the terms of `vllm bench
    serve`). The times are stretched so that the last is num_requests / rate exactly, which keeps runs of few
    requests comparable. Raises ValueError for a rate or burstiness that is not positive.
    """
    if not rate > 0 or not burstiness > 0:
        raise ValueError("the request rate and the burstiness must be positive")
    if math.isinf(rate):
        return [0.0] * num_requests
    gaps = rng.gamma(shape=burstiness, scale=1.0 / (rate * burstiness), size=num_requests)
    times = np.cumsum(gaps)
    if num_requests and times[-1] > 0:
        times *= num_requests / rate / times[-1]
    return [float(time) for time in times]
