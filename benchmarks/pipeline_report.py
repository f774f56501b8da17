"""What `benchmarks.pipeline` has measured, and how it says so. Pure."""

from dataclasses import dataclass

from benchmarks.hop import Hop

ROUND_TRIP_S = 0.02
"""Of the links that are far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Tokens a second of the same streams over one stage on one core, and over two stages on two."""

    num_streams: int
    num_prompt_tokens: int
    num_tokens: int
    one_stage: float
    two_stages: float

    @property
    def ratio(self) -> float:
        return self.two_stages / self.one_stage

    def rows(self) -> list[tuple[str, str]]:
        """Names and values."""
        load = f"{self.num_streams} streams, {self.num_prompt_tokens} tokens in, {self.num_tokens} out"
        return [
            (load, ""),
            ("  one stage on one core", f"{self.one_stage:.1f} tokens/s"),
            ("  two stages on two cores", f"{self.two_stages:.1f} tokens/s"),
            ("  ratio", f"{self.ratio:.2f}"),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FarLatency:
    """Milliseconds a token of one stream: `alone` on one thread without peers, `near` over clear links, `far` over
    links of 20 ms a round trip and 1 Gbit/s.

    A token goes from the coordinator to the first stage, from stage to stage, and back.
    """

    alone_ms: float
    near_ms: float
    far_ms: float
    num_stages: int = 2

    @property
    def due_ms(self) -> float:
        """The stages' times and nothing but the light's."""
        return self.alone_ms + (self.num_stages + 1) * 1000 * ROUND_TRIP_S / 2

    @property
    def ratio(self) -> float:
        return self.far_ms / self.due_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Seconds without a token of the stream that waited longest, when a stage is killed that a spare replaces.

    `replay_s` is what its spare takes for the tokens that it computes again, by its own measurement of a layer.
    """

    model: str
    num_streams: int
    replay_s: float
    undisturbed_s: float
    killed_s: float
    has_failed: bool

    def rows(self) -> list[tuple[str, str]]:
        """Names and values."""
        return [
            (f"SIGKILL amid {self.num_streams} streams of {self.model}: stall", f"{self.killed_s:.2f} s"),
            ("  undisturbed", f"{self.undisturbed_s:.2f} s"),
            ("  of it replay, by measured layers", f"{self.replay_s:.2f} s"),
            ("  streams harmed", "some" if self.has_failed else "none"),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of a run. `detection_ms` is from SIGSTOP of a stage until its loss is noticed."""

    hop: Hop
    throughput: list[Throughput]
    latency: FarLatency
    losses: list[Loss]
    detection_ms: float

    def lines(self) -> list[str]:
        """A table."""
        rows = [
            (
                f"hop of {self.hop.num_bytes >> 10} KiB, mTLS, p50 / p99",
                f"{self.hop.p50_ms:.2f} / {self.hop.p99_ms:.2f} ms",
            ),
            *(row for throughput in self.throughput for row in throughput.rows()),
            (
                "one stream alone / over clear links",
                f"{self.latency.alone_ms:.1f} / {self.latency.near_ms:.1f} ms/token",
            ),
            ("  over 20 ms and 1 Gbit/s, due", f"{self.latency.far_ms:.1f}, {self.latency.due_ms:.1f} ms/token"),
            ("  ratio", f"{self.latency.ratio:.2f}"),
            *(row for loss in self.losses for row in loss.rows()),
            ("SIGSTOP until it is noticed", f"{self.detection_ms:.0f} ms"),
        ]
        return [f"{name:52} {value:>22}" for name, value in rows]
