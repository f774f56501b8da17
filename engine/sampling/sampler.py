"""Chooses the token that follows each row of logits. Knows nothing of sequences, KV or the model.

A row's token and log-probabilities are a function of its logits and its SampleSpec, to the bit: they do not depend
on the other rows, their number or their order, nor on the number of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.engine.interface import SampleSpec, TokenLogprobs
from distllm.engine.sampling.candidates import Candidates, find_candidates
from distllm.engine.sampling.drawing import draw_from_many, to_weights
from distllm.engine.sampling.filtered_draw import FilteredRows, draw_filtered
from distllm.engine.sampling.listed_draw import ListedPlan, draw_listed
from distllm.engine.sampling.logprobs import NonFiniteLogits, token_logprobs
from distllm.engine.sampling.normalising import log_softmax, softmax_into
from distllm.engine.sampling.philox import uniforms
from distllm.engine.sampling.plan import RowGroup, SamplingPlan
from distllm.engine.sampling.ranking import best_ids, block_maxima
from distllm.engine.sampling.token_counts import CountsCache

_MAX_LOGITS_AT_ONCE = 1 << 22
"""Bounds the memory held between steps."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What one row yielded: a token, or None and the `error` that says why there is none."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of logits with what belongs to them."""

    logits: Tensor  # float32 [rows, vocab]
    maxima: Tensor  # [rows, blocks], of blocks of logits
    peaks: Tensor  # [rows, 1], largest logits

    def take(self, group: RowGroup, members: slice) -> "_Rows":
        return _Rows(*(group.take(values, members) for values in (self.logits, self.maxima, self.peaks)))


class Sampler:
    """Samples step after step.

    Between steps it keeps the parameter tensors of the last batch composition, the token counts of the sequences in
    it, and memory for probabilities, which would otherwise be new pages each time.
    """

    def __init__(self) -> None:
        self._plan: SamplingPlan | None = None
        self._listed_plan: ListedPlan | None = None
        self._scratch = torch.empty(0)
        self._counts = CountsCache()

    @torch.inference_mode()
    def sample(self, logits: Tensor, specs: Sequence[SampleSpec]) -> list[SampledToken]:
        """One token for each row of `logits`, float32 [rows, vocab], which is overwritten.

        Rows whose logits hold NaN or +inf, or no finite value, come back with an error; the others are unharmed.
        """
        if not specs:
            return []
        plan = self._plan_for(logits, specs)
        raw = log_softmax(plan.scored.take(logits)) if plan.scored else None
        plan.adjustments.apply(logits, specs, self._counts)
        token_ids = self._choose(logits, plan, specs).tolist()
        logprobs: list[TokenLogprobs | None] = [None] * len(specs)
        if raw is not None:
            _score(raw, plan, token_ids, logprobs)
        return [_outcome(*row) for row in zip(token_ids, logprobs, strict=True)]

    @torch.inference_mode()
    def sample_candidates(self, best: Candidates, specs: Sequence[SampleSpec]) -> list[SampledToken]:
        """What `sample` gives for the rows whose candidates these are.

        A row has `num_candidates` of its spec, which is not None. Bad rows come back as from `sample`.
        """
        is_sound = best.values[:, :1].isfinite()
        if best.ids.shape[-1] == 1:
            token_ids = best.ids
        else:
            sound = Candidates(best.values.masked_fill(~is_sound, 0.0), best.ids)
            plan = self._listed_plan_for(specs, best.ids.device)
            token_ids = draw_listed(sound, _uniforms(specs, best.ids.device), plan).unsqueeze(-1)
        return [_outcome(token_id, None) for (token_id,) in token_ids.masked_fill(~is_sound, -1).tolist()]

    def _plan_for(self, logits: Tensor, specs: Sequence[SampleSpec]) -> SamplingPlan:
        params = [spec.params for spec in specs]
        if self._plan is None or not self._plan.fits(params, logits.shape[-1], logits.device):
            self._plan = SamplingPlan(params, logits.shape[-1], logits.device)
        return self._plan

    def _listed_plan_for(self, specs: Sequence[SampleSpec], device: torch.device) -> ListedPlan:
        params = [spec.params for spec in specs]
        if self._listed_plan is None or not self._listed_plan.fits(params, device):
            self._listed_plan = ListedPlan(params, device)
        return self._listed_plan

    def _choose(self, logits: Tensor, plan: SamplingPlan, specs: Sequence[SampleSpec]) -> Tensor:
        """Token ids, int64 [rows]; -1 for rows that have no distribution."""
        maxima = block_maxima(logits)
        peaks = maxima.amax(-1, keepdim=True)
        is_sound = peaks.isfinite()
        if not bool(is_sound.all()):
            for values in (logits, maxima, peaks):
                values.masked_fill_(~is_sound, 0.0)
        token_ids = torch.empty(len(specs), dtype=torch.int64, device=logits.device)
        if plan.greedy:
            plan.greedy.put(best_ids(plan.greedy.take(logits), plan.greedy.take(maxima)), token_ids)
        rows = _Rows(logits, maxima, peaks)
        if plan.listed:
            plan.listed.put(self._draw_listed(rows, plan, specs), token_ids)
        for group in (plan.plain, plan.filtered):
            if group:
                group.put(self._draw(rows, plan, group, specs), token_ids)
        return token_ids.masked_fill_(~is_sound.squeeze(-1), -1)

    def _draw_listed(self, rows: _Rows, plan: SamplingPlan, specs: Sequence[SampleSpec]) -> Tensor:
        """Token ids of the rows whose candidates alone decide."""
        randoms = _uniforms([specs[row] for row in plan.listed.members], rows.logits.device)
        drawn = []
        for members in _parts(plan.listed, plan.vocab_size):
            some = rows.take(plan.listed, members)
            best = find_candidates(some.logits, some.maxima, plan.lists.counts[members])
            drawn.append(draw_listed(best, randoms[members], plan.lists, members))
        return torch.cat(drawn)

    def _draw(self, rows: _Rows, plan: SamplingPlan, group: RowGroup, specs: Sequence[SampleSpec]) -> Tensor:
        """Token ids of the group's members, drawn at their temperatures."""
        randoms = _uniforms([specs[row] for row in group.members], rows.logits.device)
        drawn = []
        for members in _parts(group, plan.vocab_size):
            scaled, maxima = _scale(rows.take(group, members), group.take(plan.temperatures, members))
            weights = to_weights(softmax_into(self._scratch_like(scaled), scaled))
            if group is plan.plain:
                drawn.append(draw_from_many(weights, randoms[members]))
            else:
                filters = plan.filters.rows(members)
                drawn.append(draw_filtered(FilteredRows(weights, scaled, maxima, randoms[members], filters)))
        return torch.cat(drawn)

    def _scratch_like(self, values: Tensor) -> Tensor:
        if self._scratch.numel() < values.numel() or self._scratch.device != values.device:
            self._scratch = torch.empty(values.numel(), device=values.device)
        return self._scratch[: values.numel()].view(values.shape)


def _parts(group: RowGroup, vocab_size: int) -> list[slice]:
    """The group's members, as many at once as memory is meant for."""
    num_at_once = max(1, _MAX_LOGITS_AT_ONCE // vocab_size)
    return [slice(start, start + num_at_once) for start in range(0, len(group), num_at_once)]


def _scale(rows: _Rows, temperatures: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, in place, and maxima, less the row's largest, over temperature: so no temperature overflows."""
    return rows.logits.sub_(rows.peaks).div_(temperatures), (rows.maxima - rows.peaks).div_(temperatures)


def _uniforms(specs: Sequence[SampleSpec], device: torch.device) -> Tensor:
    numbers = uniforms([spec.seed for spec in specs], [spec.index for spec in specs])
    return torch.from_numpy(numbers).to(device)


def _score(raw: Tensor, plan: SamplingPlan, token_ids: list[int], logprobs: list[TokenLogprobs | None]) -> None:
    """Fill in `logprobs` of the rows that ask for them; `raw` holds their distributions."""
    rows = plan.scored.members
    scored = token_logprobs(
        raw, [max(token_ids[row], 0) for row in rows], [plan.params[row].logprobs or 0 for row in rows]
    )
    for row, entry in zip(rows, scored, strict=True):
        logprobs[row] = entry


def _outcome(token_id: int, logprobs: TokenLogprobs | None) -> SampledToken:
    if token_id < 0:
        return SampledToken(None, error=str(NonFiniteLogits()))
    return SampledToken(token_id, logprobs)
