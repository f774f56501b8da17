"""A cluster to show: two stages and a spare, after a loss."""

import msgspec

from distllm.engine.pipeline.coordinator.snapshot import (
    ClusterEvent,
    ClusterSnapshot,
    LinkSnapshot,
    PeerSnapshot,
    PredictionSnapshot,
    StageSnapshot,
)


def stage(peer_id: str, begin: int, end: int, step_s: float | None = 0.0125) -> StageSnapshot:
    return StageSnapshot(
        peer_id=peer_id,
        begin=begin,
        end=end,
        numerics="cpu1/w8/tp2",
        quantization="w8",
        num_ranks=2,
        num_blocks=1000,
        kv_block_bytes=4096,
        weight_bytes=3 << 20,
        step_s=step_s,
        predicted_step_s=0.01,
    )


def peer(peer_id: str, seat: int | None, trouble: str | None = None) -> PeerSnapshot:
    return PeerSnapshot(
        peer_id=peer_id,
        address="10.0.0.1:6000",
        state="spare" if seat is None else "serving",
        stage=seat,
        loaded=[(0, 3), (3, 6)],
        trouble=trouble,
        beat_age_s=0.125,
        busy_s=0.5,
        free_bytes=2 << 30,
        step_s=0.0125,
        round_trip_s=0.002,
        steps_total=40,
        compute_s_total=0.5,
        sent_bytes_total=4096,
    )


def sample_cluster(**changes: object) -> ClusterSnapshot:
    """p1 and p2 serve, p3 stands by; fields may be changed."""
    cluster = ClusterSnapshot(
        time_s=1_000.0,
        epoch=7,
        is_serving=True,
        waiting=None,
        num_stages=2,
        num_layers=6,
        num_in_flight=2,
        rebuilt_tokens_total=64,
        recoveries_total=1,
        recovery_s_total=0.25,
        last_recovery_s=0.25,
        stages=[stage("p1", 0, 3), stage("p2", 3, 6, step_s=None)],
        peers=[peer("p1", 0), peer("p2", 1), peer("p3", None)],
        links=[
            LinkSnapshot(
                source="p1",
                target="p2",
                codec="fp8",
                is_relayed=True,
                frame_s=0.003,
                bytes_per_s=2e6,
                delay_s=0.001,
                goodput_bytes_per_s=5e6,
            )
        ],
        events=[
            ClusterEvent(999.0, "recovered", "p1 [0, 3) -> p2 [3, 6)", duration_ms=250.0),
            ClusterEvent(998.75, "suspected", "it has been silent for 800 ms", "p4"),
        ],
        predicted=PredictionSnapshot(ttft_s=0.5, tpot_s=0.025, tokens_per_s=120.0, binding_limit="compute of p1"),
    )
    return msgspec.structs.replace(cluster, **changes)
