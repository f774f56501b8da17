"""lm-eval's local-completions, as anyone would run it, scores the served model as transformers does directly."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from distllm.engine.embedded import checkpoint_path

if TYPE_CHECKING:
    from tests.conftest import RunningServer

CHOICES = [
    ("Once upon a", [" time", " chair", " seven"]),
    ("The little girl was very", [" happy", " of", " with"]),
    ("They lived in a small", [" house", " because", " it"]),
    ("One day the dog went to the", [" park", " was", " very"]),
    ("The sun was", [" warm", " table", " she"]),
    ("He was sad because he lost his", [" ball", " and", " were"]),
    ("She smiled and said", [" thank", " chair", " the of"]),
    ("The cat and the", [" dog", " at", " slowly was"]),
]
GENERATIONS = ["The end of the race", "They dug until their hands", "They walked over three hills and across"]
"""What follows does not hang on rounding: no name that could as well be another."""
NUM_TOKENS = 8


@dataclass(frozen=True)
class Direct:
    """The checkpoint in transformers, in float32."""

    model: Any
    tokenizer: Any

    def logprob(self, context: str, continuation: str) -> float:
        ids = self.tokenizer(context + continuation)["input_ids"]
        num_context = len(self.tokenizer(context)["input_ids"])
        with torch.inference_mode():
            logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logprobs[place - 1, ids[place]]) for place in range(num_context, len(ids)))

    def generate(self, prompt: str) -> str:
        ids = self.tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            said = self.model.generate(**ids, max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0)
        return str(self.tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def direct() -> Direct:
    path = checkpoint_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return Direct(model, AutoTokenizer.from_pretrained(path))


def write_task(directory: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> None:
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(directory / f"{name}.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        **config,
    }
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(task))


def run_lm_eval(server: "RunningServer", directory: Path) -> dict[str, Any]:
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    model_args = {"base_url": f"{server.url}/v1/completions", "model": model, "max_length": 512}
    flags = {
        "--model": "local-completions",
        "--model_args": ",".join(f"{name}={value}" for name, value in model_args.items()),
        "--tasks": "served_choices,served_words",
        "--batch_size": "3",
        "--include_path": str(directory),
        "--output_path": str(directory / "out"),
    }
    command = [sys.executable, "-m", "lm_eval", "--log_samples", *(word for flag in flags.items() for word in flag)]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(directory / "hf"), "PATH": "", "HOME": str(directory)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    (results,) = (directory / "out").rglob("results_*.json")
    scores: dict[str, Any] = json.loads(results.read_text())["results"]
    samples = next((directory / "out").rglob("samples_served_choices_*.jsonl")).read_text().splitlines()
    scores["samples"] = sorted(map(json.loads, samples), key=lambda sample: sample["doc_id"])
    return scores


@pytest.mark.slow
def test_lm_eval_s_scores_are_the_model_s_own(
    embedded_server: "RunningServer", direct: Direct, tmp_path: Path
) -> None:
    scored = [[direct.logprob(text, choice) for choice in choices] for text, choices in CHOICES]
    rows = [{"text": text, "choices": choices, "gold": 0} for text, choices in CHOICES]
    write_task(
        tmp_path,
        "served_choices",
        rows,
        output_type="multiple_choice",
        doc_to_choice="choices",
        doc_to_target="gold",
        target_delimiter="",
        metric_list=[{"metric": "acc"}],
    )
    words = [{"text": text, "target": direct.generate(text)} for text in GENERATIONS]
    write_task(
        tmp_path,
        "served_words",
        words,
        output_type="generate_until",
        doc_to_target="{{target}}",
        generation_kwargs={"until": ["\n\n\n"], "max_gen_toks": NUM_TOKENS, "temperature": 0},
        metric_list=[{"metric": "exact_match"}],
    )
    scores = run_lm_eval(embedded_server, tmp_path)
    accuracy = sum(max(values) == values[0] for values in scored) / len(scored)
    assert scores["served_choices"]["acc,none"] == pytest.approx(accuracy)
    for sample, expected in zip(scores["samples"], scored, strict=True):
        served = [float(response[0][0]) for response in sample["resps"]]
        assert served == pytest.approx(expected, abs=0.25)  # bfloat16 against float32
    assert scores["served_words"]["exact_match,none"] == 1.0
