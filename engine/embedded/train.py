"""Train the embedded model from nothing: tokenizer, weights and every file of its checkpoint.

    python -m distllm.engine.embedded.train

The text comes from the grammar in `corpus`; nothing is read or downloaded. Each step draws its own documents by
(seed, step), so a run that was interrupted goes on from its progress file as if it had not been.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distllm.engine.embedded import checkpoint_path
from distllm.engine.embedded.corpus import training_documents
from distllm.engine.embedded.packing import IGNORED, pack
from distllm.engine.embedded.tokenization import END_OF_TEXT, TURN_END, encode, train_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what comes out. Lengths in tokens; learning rates are peaks."""

    num_steps: int = 3200
    seed: int = 3
    vocab_size: int = 2560
    tokenizer_documents: int = 20_000
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 3
    context_length: int = 2048
    tokens_per_step: int = 4096
    row_length: int = 256
    full_length_every: int = 12
    warmup_steps: int = 60
    matrix_learning_rate: float = 3e-3
    other_learning_rate: float = 8e-3
    weight_decay: float = 0.05
    max_gradient_norm: float = 1.0
    uses_bfloat16: bool = True
    report_every: int = 50

    def row_length_at(self, step: int) -> int:
        """Short rows are cheaper; every so often a row fills the context, so that far positions are known."""
        is_full = step % self.full_length_every == self.full_length_every - 1
        return self.context_length if is_full else self.row_length

    def learning_rate_factor(self, step: int) -> float:
        """A linear warm-up, then half a cosine down to nothing."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Run:
    """One training run: model, optimisers, and the step that comes next."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.model = LlamaForCausalLM(llama_config(recipe, tokenizer))
        self.optimizers = _optimizers(self.model, recipe)
        self.step = 0

    def advance(self) -> float:
        """Take one step; the mean loss of its learned tokens, in nats."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self.recipe.learning_rate_factor(self.step)
        loss = self._loss(*self._batch())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_gradient_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def save_progress(self, path: Path) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        unfinished = path.with_suffix(".part")
        torch.save(state, unfinished)
        os.replace(unfinished, path)

    def load_progress(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        recipe = self.recipe
        row_length = recipe.row_length_at(self.step)
        documents = training_documents(f"training {recipe.seed} {self.step}")
        tokenized = ([*encode(document, self.tokenizer)] for document in documents)
        pad_id = self.tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        return pack(tokenized, max(recipe.tokens_per_step // row_length, 1), row_length, pad_id)

    def _loss(self, token_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.uses_bfloat16):
            hidden = self.model.model(input_ids=token_ids, use_cache=False).last_hidden_state
            is_learned = targets != IGNORED
            logits = self.model.lm_head(hidden[is_learned])  # [num_learned, vocab_size]
        return functional.cross_entropy(logits.float(), targets[is_learned])


def llama_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A Llama whose vocabulary is exactly the tokenizer's."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        head_dim=recipe.hidden_size // recipe.num_heads,
        max_position_embeddings=recipe.context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_ids(tokenizer),
        pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    )


def end_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids that end an answer: the end of a turn, and the end of a story."""
    return [tokenizer.convert_tokens_to_ids(token) for token in (TURN_END, END_OF_TEXT)]


def save_checkpoint(run: Run, directory: Path) -> None:
    """Write `run` to `directory` in Hugging Face format, weights in bfloat16."""
    model = LlamaForCausalLM(run.model.config)
    model.load_state_dict(run.model.state_dict())
    model.generation_config = GenerationConfig(
        eos_token_id=end_ids(run.tokenizer), pad_token_id=run.model.config.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(directory)
    run.tokenizer.save_pretrained(directory)


def train(recipe: Recipe, output: Path, progress: Path, report: Callable[[str], None]) -> Run:
    """Train by `recipe` and write the checkpoint to `output`; goes on from `progress` where that file exists."""
    tokenizer = train_tokenizer(recipe.vocab_size, recipe.tokenizer_documents, recipe.context_length, recipe.seed)
    run = Run(recipe, tokenizer)
    if progress.exists():
        run.load_progress(progress)
    wall, processor, losses = time.monotonic(), time.process_time(), list[float]()
    while run.step < recipe.num_steps:
        losses.append(run.advance())
        if run.step % recipe.report_every == 0 or run.step == recipe.num_steps:
            mean = sum(losses[-recipe.report_every :]) / len(losses[-recipe.report_every :])
            spent = f"{time.monotonic() - wall:.0f} s, processor {time.process_time() - processor:.0f} s"
            report(f"step {run.step}/{recipe.num_steps}, loss {mean:.4f}, {spent}")
            run.save_progress(progress)
    save_checkpoint(run, output)
    progress.unlink(missing_ok=True)
    return run


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for embedding and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    in_matrices = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_matrices]
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.matrix_learning_rate,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        others, lr=recipe.other_learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def main(arguments: Sequence[str] | None = None) -> None:
    recipe = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m distllm.engine.embedded.train",
        description="Train the embedded model from nothing and write its checkpoint. Needs no data and no network.",
    )
    parser.add_argument(
        "--output", type=Path, default=checkpoint_path(), help="directory of the checkpoint (default: %(default)s)"
    )
    parser.add_argument(
        "--progress",
        type=Path,
        default=Path("embedded-training.pt"),
        help="file to go on from after an interruption, removed at the end (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=recipe.num_steps, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="of text and weights (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default: %(default)s)")
    parser.add_argument(
        "--float32",
        action="store_true",
        help="multiply matrices in float32; without it in bfloat16, which is faster where the processor has it",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = replace(recipe, num_steps=options.steps, seed=options.seed, uses_bfloat16=not options.float32)
    train(recipe, options.output, options.progress, report=lambda line: print(line, flush=True))  # noqa: T201


if __name__ == "__main__":
    main()
