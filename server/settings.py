"""What the HTTP front end needs to know beside its engine and its tokenizer: frozen values, resolved."""

from dataclasses import dataclass, field

from distllm.engine.pipeline.placement.routing import LatencyTarget, Route


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeSettings:
    """How streams outlast their connections. `grace_s` is how long one waits for its client to come back, 0 for not
    at all. `are_all_resumable` says so of every stream, not only of those that ask for it.

    At most `max_streams` are kept, with events of `max_bytes` in all.
    """

    grace_s: float = 30.0
    are_all_resumable: bool = False
    max_streams: int = 256
    max_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if min(self.grace_s, self.max_streams, self.max_bytes) < 0:
            raise ValueError("grace_s, max_streams and max_bytes must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndSettings:
    """`model_names[0]` is the name in answers; every one is accepted in requests.

    No `api_keys` means that no key is asked for. `keep_alive_s` is the silence after which a stream carries a
    comment, 0 for none. `stall_s` is how long work may wait without a finished step before /health says so.
    `max_choices` bounds prompts x max(n, best_of) of one request, `max_live` the sequences of all: the engine takes
    a prompt while fewer are live, and runs `max_running` of them at once, in steps of up to `token_budget` tokens.
    `route` is the name of a single engine in answers, `target` what requests are told to be predicted to meet.
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 1024 * 1024
    max_choices: int = 1024
    max_live: int = 576
    max_running: int = 64
    token_budget: int = 512
    route: Route = "local"
    target: LatencyTarget = field(default_factory=LatencyTarget)
    keep_alive_s: float = 15.0
    stall_s: float = 60.0
    resuming: ResumeSettings = ResumeSettings()

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise ValueError("model_names must hold at least one name, and no empty one")
        if min(self.max_body_bytes, self.max_choices, self.max_live, self.max_running, self.token_budget) < 1:
            raise ValueError(
                "max_body_bytes, max_choices, max_live, max_running and token_budget must be at least 1"
            )
        if self.keep_alive_s < 0 or self.stall_s <= 0:
            raise ValueError("keep_alive_s must be at least 0 and stall_s above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What a request that leaves a field out gets; from the checkpoint's generation_config.

    `max_tokens` None means each endpoint's own: 16 for completions, the rest of the context for chat.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()
