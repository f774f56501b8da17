"""A user's injection policy: checked, made a plan, and a decoder of reference blocks that runs under one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.plans import PLANS
from distllm.engine.distributed.user_policy import InvalidPolicy, Policy, check_policy, policy_blocks
from distllm.engine.forward import ModelForward
from distllm.engine.reference_block import POLICY, ShardedConfig, ShardedForCausalLM, register_reference_model
from distllm.engine.served_model import prepare_model
from tests.engine.conftest import make_model
from tests.engine.distributed.test_sharded_forward import run
from tests.engine.distributed.thread_ranks import ThreadGroup, loading_in_turn, on_every_rank
from tests.engine.test_forward import NUM_BLOCKS, TOLERANCE, Part, make_stories

LLAMA: Policy = {"LlamaDecoderLayer": ["self_attn.o_proj", "mlp.down_proj"]}


@pytest.fixture(scope="module", autouse=True)
def load_in_turn() -> Iterator[None]:
    with loading_in_turn():
        yield


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("llama", LLAMA),
        ("gpt2", {"GPT2Block": ("attn.c_proj", "mlp.c_proj")}),
        ("opt", {"OPTDecoderLayer": ["self_attn.out_proj", "OPTDecoderLayer.fc2"]}),
        ("gpt_neox", {"GPTNeoXLayer": ["attention.dense", "mlp.dense_4h_to_h"]}),
        ("phi3", {"Phi3DecoderLayer": ["self_attn.o_proj", "mlp.down_proj"]}),
        ("mixtral", {"MixtralDecoderLayer": ["self_attn.o_proj"]}),
        ("deepseek_v3", {"DeepseekV3DecoderLayer": ["self_attn.o_proj", "mlp.down_proj"]}),
    ],
)
def test_a_policy_makes_of_a_known_model_what_its_own_plan_is(kind: str, policy: Policy) -> None:
    model = make_model(kind)
    expected = PLANS[model.config.model_type]
    assert sorted(map(repr, policy_blocks(model, policy))) == sorted(map(repr, expected))


def test_naming_every_divided_layer_means_the_same_as_naming_the_last() -> None:
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    mlp = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    model = make_model("llama-odd")
    everything = {"LlamaDecoderLayer": attention + mlp}
    assert policy_blocks(model, everything) == policy_blocks(model, LLAMA)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (
            {"LlamaDecoderLayer": ["self_attn.out_proj"]},
            r"LlamaDecoderLayer has no linear layer self_attn\.out_proj; did you mean self_attn\.o_proj",
        ),
        (
            {"LlamaDecoderLayer": ["zzz.zzz"]},
            r"no linear layer zzz\.zzz; it has mlp\.down_proj, .*self_attn\.v_proj",
        ),
        ({"LlamaDecoder": ["mlp.down_proj"]}, "the model has no LlamaDecoder; did you mean LlamaDecoderLayer"),
        (
            {"LlamaDecoderLayer": ["self_attn.q_proj"]},
            r"of self_attn the outputs of o_proj are those to add up, not q_proj's: name self_attn\.o_proj",
        ),
    ],
)
def test_what_matches_nothing_is_refused_with_near_matches(policy: Policy, words: str) -> None:
    with pytest.raises(InvalidPolicy, match=f"^injection_policy: .*{words}") as caught:
        policy_blocks(make_model("llama"), policy)
    assert "\n" not in str(caught.value)


def test_a_model_on_one_rank_has_its_policy_checked_as_well(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    config = EngineConfig(model=str(tmp_path), device="cpu", injection_policy={"LlamaDecoderLayer": ("mlp.down",)})
    with pytest.raises(InvalidPolicy, match=r"no linear layer mlp\.down; did you mean mlp\.down_proj"):
        prepare_model(config, lambda *_: None)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of reference blocks, float32."""
    register_reference_model()
    torch.manual_seed(0)
    config = ShardedConfig(
        vocab_size=131,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("reference")
    ShardedForCausalLM(config).save_pretrained(path)
    return path


def test_the_reference_block_has_the_names_of_its_policy(reference: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(reference)
    check_policy(model, POLICY)
    check_policy(model, {"ShardedTransformerBlock": [f"attention.{name}_proj" for name in "qkvo"]})
    assert ShardedConfig.model_type not in PLANS


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_decoder_of_reference_blocks_has_its_own_logits_over_ranks(reference: Path, size: int) -> None:
    config = EngineConfig(
        model=str(reference), device="cpu", max_model_len=128, num_threads=1, injection_policy=POLICY
    )

    def load(group: ThreadGroup) -> ModelForward:
        return prepare_model(config, lambda *_: None, None if size == 1 else group).forward_over(NUM_BLOCKS)

    forwards = on_every_rank(size, load)
    (story,) = make_stories(6, [31])
    (logits,) = run(forwards, [Part(story, 0, 31)])
    model = AutoModelForCausalLM.from_pretrained(reference, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model(torch.tensor([story.token_ids])).logits[0]
    assert (logits - expected).abs().max() < TOLERANCE
