"""How fast a peer works, from the counters in its beats."""

from distllm.engine.pipeline.messages import Work


class Workload:
    """Of one boot of a peer. Means are over the latest beats between which there was something to count."""

    def __init__(self) -> None:
        self.work = Work()
        self.step_s: float | None = None
        self.round_trip_s: float | None = None
        self.frame_s: float | None = None
        self.bytes_per_s: float | None = None

    def note(self, work: Work, round_trip_s: float | None) -> None:
        """Take what the newest beat says. One that came late says less than is known, and is left."""
        past = self.work
        num_steps, num_sent = work.num_steps - past.num_steps, work.num_sent - past.num_sent
        if num_steps < 0 or num_sent < 0:
            return
        self.work, self.round_trip_s = work, round_trip_s
        if num_steps:
            self.step_s = (work.compute_s - past.compute_s) / num_steps
        if num_sent:
            sending_s = work.send_s - past.send_s
            self.frame_s = sending_s / num_sent
            self.bytes_per_s = (work.sent_bytes - past.sent_bytes) / sending_s if sending_s > 0 else None
