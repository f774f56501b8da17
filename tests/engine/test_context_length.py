"""How long a sequence may be, by what config.json says."""

import pytest

from distllm.engine.context_length import resolve_length, supported_length


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024, "n_ctx": 512}, 1024),
        ({"max_seq_len": 2048}, 2048),
        ({"hidden_size": 64}, None),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 4096),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096},
            },
            131072,
        ),
        ({"max_position_embeddings": 64, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": None}, 64),
    ],
)
def test_the_length_that_a_config_promises(config: dict[str, object], length: int | None) -> None:
    assert supported_length(config) == length


def test_what_is_asked_is_kept_within_what_is_supported() -> None:
    assert resolve_length(None, 4096) == 4096
    assert resolve_length(100, 4096) == 100
    assert resolve_length(100, None) == 100


def test_a_length_beyond_the_model_is_refused_by_the_flags_name() -> None:
    with pytest.raises(ValueError, match="--max-model-len 5000 is beyond the 4096 tokens"):
        resolve_length(5000, 4096)


def test_a_model_without_a_limit_needs_the_flag() -> None:
    with pytest.raises(ValueError, match="give --max-model-len"):
        resolve_length(None, None)
