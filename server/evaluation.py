"""`distllm eval`: prints perplexity, and how far one model's predictions are from another's."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.child_program import Refusal
from distllm.engine.config import EngineConfig
from distllm.engine.embedded.held_out import held_out_texts
from distllm.engine.evaluation_report import Evaluation, EvaluationRequest, StagesRequest, run_evaluation
from distllm.engine.hub import ModelNotFound, resolve
from distllm.engine.pipeline.wire.codec_names import CodecName
from distllm.server.config import InvalidSettings, Settings
from distllm.server.launch import find_checkpoint, model_name, start_message
from distllm.server.slow_tokenizer import TokenizerError
from distllm.server.tokenizer import Tokenizer

_NUM_STORIES = 100
_STORY_END = "<|endoftext|>"
_REMEDY = "compare models with one tokenizer, or measure the perplexity of each without --against"


class VocabulariesDiffer(Exception):
    """Predictions of two models that mean different tokens by the same ids cannot be compared."""


def stages_of(codec: CodecName | None, num_stages: int | None) -> StagesRequest | None:
    """What --codec and --num-stages ask for. Raises InvalidSettings."""
    if codec is not None:
        return StagesRequest(2 if num_stages is None else num_stages, codec)
    if num_stages is not None:
        raise InvalidSettings("--num-stages needs --codec: without one, stages predict what the whole model does")
    return None


def print_evaluation(
    settings: Settings, against: str | None, text: Path | None, window: int, stages: StagesRequest | None = None
) -> int:
    """Print the figures of the model that `settings` name. Returns the exit status: 0, or 1 if there are none.

    `against` is compared with as it is stored; with `stages`, the same stages without their codec are. The words
    are those of `text`, or stories that the embedded model never saw, cut into windows of `window` tokens.
    """
    if window < 2:
        raise InvalidSettings(f"--window must be at least 2, not {window}")
    if stages is not None:
        _check_stages(settings, against)
    try:
        checkpoint = find_checkpoint(settings)
        config = start_message(settings, checkpoint).engine
        reference = None if against is None else _as_stored(config, resolve(against, None))
        tokenizer, texts = Tokenizer.load(checkpoint), _texts(text)
        windows = asyncio.run(_windows(tokenizer, texts, window))
        if reference is not None:
            other = Tokenizer.load(Path(reference.model))
            _check_vocabularies(tokenizer.vocabulary, other.vocabulary, (model_name(settings), reference.model))
            if windows != asyncio.run(_windows(other, texts, window)):
                raise VocabulariesDiffer(f"both models cut the text into different tokens; {_REMEDY}")
        result = run_evaluation(EvaluationRequest(config, reference, windows, stages))
    except (ModelNotFound, CheckpointError, TokenizerError, VocabulariesDiffer) as error:
        result = Refusal(str(error))
    if isinstance(result, Refusal):
        sys.stderr.write(f"distllm: {result.reason}\n")
        return 1
    name, other_name = model_name(settings), against
    if stages is not None:
        name, other_name = f"{name} over {stages.num_stages} stages, in {stages.codec}", "without a codec"
    sys.stdout.write("\n".join(report(result, name, other_name)) + "\n")
    return 0


def report(result: Evaluation, name: str, against: str | None) -> list[str]:
    """The figures in lines."""
    lines = [f"tokens            {result.num_tokens:,}", f"perplexity        {result.perplexity:.4f}  {name}"]
    if result.reference_perplexity is None or result.divergence is None or result.agreement is None:
        return lines
    change = result.perplexity / result.reference_perplexity - 1
    return [
        *lines,
        f"                  {result.reference_perplexity:.4f}  {against}: {change:+.2%}",
        f"KL divergence     {result.divergence:.5f} nats a token",
        f"top-1 agreement   {result.agreement:.2%}",
    ]


def _check_stages(settings: Settings, against: str | None) -> None:
    """Raises InvalidSettings."""
    if against is not None:
        raise InvalidSettings("--codec compares with the same model without one: leave --against out")
    if settings.engine.tensor_parallel_size != 1:
        raise InvalidSettings("--codec runs every stage in one process: leave --tensor-parallel-size out")


def _as_stored(config: EngineConfig, path: Path) -> EngineConfig:
    return replace(config, model=str(path), quantization=None, kv_cache_dtype="auto")


def _check_vocabularies(own: Mapping[str, int], other: Mapping[str, int], names: tuple[str, str]) -> None:
    """Raises VocabulariesDiffer, naming a token."""
    for token in sorted(own.keys() | other.keys()):
        ids = (own.get(token), other.get(token))
        if ids[0] != ids[1]:
            told = ", ".join(
                f"{'none' if number is None else number} in {name}" for number, name in zip(ids, names, strict=True)
            )
            raise VocabulariesDiffer(
                f"the models have different vocabularies: token {token!r} is {told}; {_REMEDY}"
            )


def _texts(path: Path | None) -> list[str]:
    if path is None:
        return [text + _STORY_END for text in held_out_texts(_NUM_STORIES, seed=0)]
    try:
        return [path.read_text(encoding="utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"--text {path} cannot be read: {error}") from None


async def _windows(tokenizer: Tokenizer, texts: Sequence[str], window: int) -> list[list[int]]:
    """Each text in windows of its own; ends of a single token, after which nothing is predicted, are left out."""
    windows: list[list[int]] = []
    for text in texts:
        token_ids = await tokenizer.encode(text)
        windows += [token_ids[start : start + window] for start in range(0, len(token_ids), window)]
    if not (usable := [each for each in windows if len(each) > 1]):
        raise InvalidSettings("--text holds less than two tokens")
    return usable
