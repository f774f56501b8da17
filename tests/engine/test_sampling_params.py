"""What seeds a request's sequences."""

from distllm.engine.sampling_params import sequence_seed


def test_the_first_sequence_keeps_the_seed_of_its_request() -> None:
    assert sequence_seed(7, 0) == 7
    assert sequence_seed(-1, 0) == 2**64 - 1


def test_sequences_of_neighbouring_requests_share_no_seed() -> None:
    seeds = {sequence_seed(request_seed, index) for request_seed in range(100) for index in range(100)}
    assert len(seeds) == 100 * 100
    assert all(0 <= seed < 2**64 for seed in seeds)
