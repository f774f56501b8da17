"""Keeps a plan of who serves which layers: by what the survey found, or evenly while that does not tell."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.pipeline.coordinator.division import Layers, Seat, divide_evenly, plan_of, seats_of
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.situation import Present, Situation
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.placement.plan import Workload
from distllm.engine.pipeline.placement.plan_record import PlanRecord, utc_now, write_record
from distllm.engine.pipeline.placement.prediction import Prediction
from distllm.engine.pipeline.placement.report import report
from distllm.engine.pipeline.placement.search import Found, NothingFits, SearchResult, search_plan
from distllm.engine.pipeline.placement.what_if import pays_back
from distllm.engine.pipeline.settings import ClusterSettings

logger = logging.getLogger("distllm.pipeline")

_LOOK_S = 0.25
_HORIZON_S = 600.0
"""Within which a better plan must pay back what changing to it costs."""
_MAX_STEPS_A_STAGE = 4
"""Most steps under way at once, where links take long beside stages."""


class Placer:
    """`run` it; `seats` and `better` are then what the pipeline should be, `served` what it should give as it is.

    A model that is not served yet waits for peers to be measured, but no longer than `patience_s`.
    """

    def __init__(
        self,
        members: Members,
        survey: Survey,
        whole: StageConfig,
        settings: ClusterSettings,
        patience_s: float = 30.0,
    ) -> None:
        self._members = members
        self._survey = survey
        self._whole = whole
        self._settings = settings
        self._patience_s = patience_s
        self._seats: dict[tuple[str, ...], list[Seat]] = {}
        self._begun: list[Seat] | None = None  # a plan that does not serve yet
        self._impatient_s: float | None = None
        self._last: Situation | None = None
        self._has_planned = asyncio.Event()
        self.better: list[Seat] | None = None
        self.served: Prediction | None = None
        self.waits_for = "peers"

    @property
    def num_needed(self) -> int:
        """Peers without whom nothing is planned at first."""
        return max(self._settings.min_peers, self._settings.num_stages or 1)

    def seats(self, peer_ids: tuple[str, ...]) -> list[Seat] | None:
        """Stages for just these peers; None while that is not known, or there is nothing that would do."""
        return self._seats.get(peer_ids)

    async def run(self, look: Callable[[], Present]) -> None:
        """Plan anew whenever something changes that matters to a plan, for ever."""
        await asyncio.gather(self._plan_forever(look), self._keep_record())

    async def plan(self, present: Present) -> None:
        """Plan anew unless nothing has changed that matters."""
        situation = self._situation(present)
        if situation == self._last:
            return
        self._decide(situation, await self._searched(situation))
        self.served = situation.served
        self._last = situation
        self._has_planned.set()
        self._members.changed.set()

    async def write_record(self) -> None:
        """Keep what is known now for `distllm cluster plan`."""
        if self._last is None:
            return
        try:
            await asyncio.to_thread(write_record, self._record(self._last), Path(self._settings.state_dir))
        except OSError as error:
            logger.warning("the plan cannot be written: %s", error)

    async def _plan_forever(self, look: Callable[[], Present]) -> None:
        while True:
            await self.plan(look())
            await self._members.wait_for_change(_LOOK_S)

    async def _keep_record(self) -> None:
        """Write each plan, while a slow disk holds up no other."""
        while True:
            await self._has_planned.wait()
            self._has_planned.clear()
            await self.write_record()

    def _situation(self, present: Present) -> Situation:
        wanted = self._settings.num_stages
        if wanted is not None and present.serving:
            wanted = min(wanted, len(present.peer_ids)) or None
        is_settled = bool(present.serving) or self._is_settled(present)
        cluster = self._survey.cluster(present.peer_ids, present.quantization, self._settings.compression)
        return Situation(present, self._refused(present), cluster, self._workload(present), wanted, is_settled)

    def _refused(self, present: Present) -> dict[tuple[str, Layers], str]:
        return {
            (member.peer_id, (config.begin, config.end)): reason
            for member in self._members.connected()
            if member.peer_id in present.peer_ids
            for config, reason in member.refusals.believed()
        }

    def _is_settled(self, present: Present) -> bool:
        """Whether enough peers are here, and all of them are measured, or that takes too long."""
        if len(present.peer_ids) < self.num_needed:
            self._impatient_s = None
            self.waits_for = f"peers: {len(present.peer_ids)} of {self.num_needed} are here"
            return False
        self.waits_for = "peers to measure themselves"
        if self._impatient_s is None:
            self._impatient_s = time.monotonic() + self._patience_s
        return self._survey.is_settled(present.peer_ids) or time.monotonic() >= self._impatient_s

    def _workload(self, present: Present) -> Workload:
        """What is expected as far as model and scheduler go; every plan has room for a sequence at least."""
        longest, expected = self._whole.max_model_len, self._settings
        return Workload(
            prompt_tokens=min(expected.expected_prompt_tokens, max(1, 2 * longest // 3)),
            output_tokens=min(expected.expected_output_tokens, max(1, longest // 3)),
            chunk_tokens=self._whole.max_num_batched_tokens,
            num_streams=min(expected.expected_streams, self._whole.max_num_seqs),
            max_in_flight=_MAX_STEPS_A_STAGE * max(1, len(present.peer_ids)),
            min_blocks=max(present.num_blocks, -(-longest // BLOCK_SIZE)),
        )

    async def _searched(self, situation: Situation) -> SearchResult | None:
        """None where there is nothing to search among.

        Where stages are lost, a plan that may have too little room is better than none: its peers will tell.
        """
        if not situation.cluster.peers or not situation.is_settled:
            return None
        present = situation.present
        if not present.serving and situation.num_measured < (situation.num_stages or 1):
            return None
        result = await self._search(situation, situation.workload)
        if isinstance(result, NothingFits) and present.serving and not present.is_whole:
            return await self._search(situation, self._workload(replace(present, num_blocks=0)))
        if isinstance(result, Found) and situation.refuses(seats_of(result.plan)):
            return await self._search_among_willing(situation) or result
        return result

    async def _search_among_willing(self, situation: Situation) -> Found | None:
        """The best plan of the other peers; None where they are too few."""
        rest = situation.among_willing
        if len(rest.cluster.peers) < (rest.num_stages or 1):
            return None
        result = await self._search(rest, rest.workload)
        return result if isinstance(result, Found) else None

    async def _search(self, situation: Situation, workload: Workload) -> SearchResult:
        objective = self._settings.objective
        return await asyncio.to_thread(search_plan, situation.cluster, workload, objective, situation.num_stages)

    def _decide(self, situation: Situation, result: SearchResult | None) -> None:
        present = situation.present
        self._seats, self.better, begun = {}, None, self._begun
        self._begun = None
        if present.is_whole:
            self.better = self._worthwhile(situation, result)
        elif situation.is_settled and (seats := self._kept(begun, situation, result)) is not None:
            self._begun = seats
            self._seats = {present.peer_ids: seats}

    def _kept(
        self, begun: list[Seat] | None, situation: Situation, result: SearchResult | None
    ) -> list[Seat] | None:
        """The plan whose layers are being loaded, which one that is hardly better would delay; else another."""
        peer_ids, wanted = situation.present.peer_ids, situation.num_stages
        if (
            begun is None
            or not isinstance(result, Found)
            or any(seat.peer not in peer_ids for seat in begun)
            or situation.refuses(begun)
            or wanted not in (None, len(begun))
        ):
            return self._chosen(situation, result)
        predicted = situation.predicted(begun)
        is_well = predicted is None or not pays_back(
            predicted, result.prediction, 0.0, _HORIZON_S, self._settings.objective
        )
        return begun if is_well else self._chosen(situation, result)

    def _chosen(self, situation: Situation, result: SearchResult | None) -> list[Seat] | None:
        """What to serve with where nothing is served, or too few peers take part."""
        objective = self._settings.objective
        if isinstance(result, Found) and not situation.refuses(seats_of(result.plan)):
            logger.info("the best plan for %s: %s", objective, _in_words(result.prediction))
            return seats_of(result.plan)
        if isinstance(result, NothingFits):
            self.waits_for = "; ".join(line.strip() for line in report(result, situation.workload, objective))
            logger.warning("no plan: %s", self.waits_for)
            return None
        peer_ids = situation.present.peer_ids
        num_stages = min(situation.num_stages or len(peer_ids), self._whole.num_layers)
        if not 0 < num_stages <= len(peer_ids):
            return None
        reason = "the best plan could not be loaded" if result else "too few peers are measured"
        logger.warning("dividing the model evenly over %d peers, as %s", num_stages, reason)
        layers = divide_evenly(self._whole.num_layers, num_stages)
        seats = [Seat(span, peer_id) for span, peer_id in zip(layers, peer_ids, strict=False)]
        if not situation.refuses(seats):
            return seats
        reasons = "; ".join(f"{peer}: {reason}" for (peer, _), reason in situation.refused.items())
        self.waits_for = f"peers that could not load their layers to try again: {reasons}"
        return None

    def _worthwhile(self, situation: Situation, result: SearchResult | None) -> list[Seat] | None:
        """A plan to change to from the one that serves."""
        present, objective = situation.present, self._settings.objective
        if situation.num_stages is not None and len(present.serving) < situation.num_stages:
            return self._chosen(situation, result)
        served = situation.served
        if served is None or not isinstance(result, Found):
            return None
        seats = seats_of(result.plan)
        if seats == list(present.serving) or situation.refuses(seats):
            return None
        least_gain = self._settings.replan_gain
        if not pays_back(served, result.prediction, present.reload_s, _HORIZON_S, objective, least_gain):
            return None
        logger.info("a better plan for %s: %s", objective, _in_words(result.prediction))
        return seats

    def _record(self, situation: Situation) -> PlanRecord:
        return PlanRecord(
            written_at=utc_now(),
            model=self._whole.model,
            cluster=situation.cluster,
            workload=situation.workload,
            objective=self._settings.objective,
            num_stages=situation.num_stages,
            serving=plan_of(situation.present.serving) if situation.present.is_whole else None,
            served=situation.served,
            unmeasured=self._survey.unmeasured(),
        )


def _in_words(prediction: Prediction) -> str:
    chain = " -> ".join(f"{stage.peer_id} [{stage.begin}, {stage.end})" for stage in prediction.stages)
    return (
        f"{chain}; predicted TTFT {1000 * prediction.ttft_s:.1f} ms, TPOT {1000 * prediction.tpot_s:.1f} ms, "
        f"{prediction.tokens_per_s:.0f} tokens/s, bound by {prediction.binding_limit}"
    )
