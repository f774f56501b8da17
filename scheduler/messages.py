"""What the front end and the engine process say to each other. msgspec Structs, one tagged union a direction."""

from typing import Literal

import msgspec

from distllm.engine.config import EngineConfig
from distllm.engine.interface import ExecutorInfo, TokenLogprobs
from distllm.engine.pipeline.coordinator.snapshot import ClusterSnapshot
from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.stats import EngineStats

FinishReason = Literal["stop", "length", "abort", "error"]


class SequenceStart(msgspec.Struct, frozen=True, array_like=True):
    """One sequence of a request: its number within the request and the output tokens it already has."""

    index: int
    output_ids: list[int] = []


class StartEngine(msgspec.Struct, frozen=True, tag=True):
    """The first message to an engine process: what to load and how to schedule."""

    engine: EngineConfig
    scheduler: SchedulerConfig
    log_level: str = "INFO"


class EngineRequest(msgspec.Struct, frozen=True, tag=True):
    """A validated request. Everything needed to continue it anywhere: tokens, parameters, seed.

    `sequences` are forks of one prompt (n, best_of). A request that is resubmitted after an engine was lost lists
    only its unfinished sequences, each with the tokens it has. Sequence i samples with sequence_seed(seed, i).
    Smaller `priority` runs first. `arrival_s` is the front end's time.time().
    """

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    sequences: list[SequenceStart]
    priority: int = 0
    arrival_s: float = 0.0
    cache_salt: str = ""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a request, or only some of its sequences (`indices`); what they held is freed before the next step."""

    request_id: str
    indices: list[int] | None = None


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End the engine process after the step under way."""


class SequenceOutput(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one sequence. The last one of a sequence carries `finish_reason`, and nothing follows it.

    `stop_token_id` is the stop or eos id that ended it; that token is the last of `token_ids`. `logprobs` run
    beside `token_ids` when asked for. `prompt_logprobs` come once, on sequence 0, one for each prompt token after
    the first. `num_cached_tokens` (prompt tokens served by prefix hits) and `queue_s` come with the first output.
    """

    request_id: str
    index: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int | None = None
    queue_s: float | None = None
    error: str | None = None


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Progress of a start: what is being done and the fraction done, in [0, 1]."""

    activity: str
    fraction: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded and steps can run."""

    info: ExecutorInfo


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot start; `reason` is one line for the operator and names the remedy."""

    reason: str


class Begun(msgspec.Struct, frozen=True, tag=True):
    """Requests that enter a step for the first time. Sent before that step runs, so that a death has suspects."""

    request_ids: list[str]


class StepReport(msgspec.Struct, frozen=True, tag=True):
    """What one step brought: every sequence's new tokens, and the engine's figures after it."""

    outputs: list[SequenceOutput]
    stats: EngineStats


class ClusterReport(msgspec.Struct, frozen=True, tag=True):
    """How the machines are that serve the model; about once a second and whenever something happens to them."""

    cluster: ClusterSnapshot


ToEngine = StartEngine | EngineRequest | Abort | Shutdown
FromEngine = Loading | Ready | StartFailed | Begun | StepReport | ClusterReport
