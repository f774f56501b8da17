"""Each token lets one peer in, once, in time; whoever is refused is told why."""

import multiprocessing
import stat
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from distllm.engine.pipeline.security.join_token import (
    ExpiredToken,
    JoinToken,
    MistypedToken,
    OtherCluster,
    UnknownToken,
    UsedToken,
)
from distllm.engine.pipeline.security.state_dir import ClusterStateError
from distllm.engine.pipeline.security.token_store import TokenStore

HOUR = timedelta(hours=1)
FINGERPRINT = "cd" * 32


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path, FINGERPRINT)


def test_a_token_is_redeemed_once(store: TokenStore, now: datetime) -> None:
    text = store.make(HOUR, now)
    store.redeem(text, now)
    with pytest.raises(UsedToken, match=r"was used at .*make another with `distllm token`"):
        store.redeem(text, now)


def test_tokens_do_not_touch_each_other(store: TokenStore, now: datetime) -> None:
    first, second, third = (store.make(HOUR, now) for _ in range(3))
    store.redeem(second, now)
    store.redeem(first, now)
    store.redeem(third, now)
    with pytest.raises(UsedToken):
        store.redeem(second, now)


def test_a_token_of_an_earlier_process_is_known(tmp_path: Path, now: datetime) -> None:
    text = TokenStore(tmp_path, FINGERPRINT).make(HOUR, now)
    TokenStore(tmp_path, FINGERPRINT).redeem(text, now)
    with pytest.raises(UsedToken):
        TokenStore(tmp_path, FINGERPRINT).redeem(text, now)


def test_a_token_expires_to_the_second(store: TokenStore, now: datetime) -> None:
    text = store.make(HOUR, now)
    with pytest.raises(ExpiredToken, match=r"expired at .* UTC: make another .*--lifetime"):
        store.redeem(text, now + HOUR)
    store.redeem(text, now + HOUR - timedelta(seconds=1))


def test_a_token_that_this_cluster_did_not_make_is_unknown(store: TokenStore, now: datetime) -> None:
    store.make(HOUR, now)
    guessed = JoinToken.make(FINGERPRINT, now + HOUR)
    with pytest.raises(UnknownToken, match="no record of this join token"):
        store.redeem(guessed.text, now)


def test_a_token_with_a_later_expiry_written_into_it_is_unknown(store: TokenStore, now: datetime) -> None:
    token = JoinToken.parse(store.make(HOUR, now))
    forged = JoinToken(token.secret, token.fingerprint, token.expires_at + HOUR)
    with pytest.raises(UnknownToken):
        store.redeem(forged.text, now)


def test_a_token_of_another_cluster_and_a_mistyped_one_are_told_apart(store: TokenStore, now: datetime) -> None:
    with pytest.raises(OtherCluster):
        store.redeem(JoinToken.make("00" * 32, now + HOUR).text, now)
    with pytest.raises(MistypedToken):
        store.redeem(store.make(HOUR, now)[:-1], now)


def test_used_tokens_are_remembered_until_they_expire_and_then_swept(
    store: TokenStore, tmp_path: Path, now: datetime
) -> None:
    used = store.make(HOUR, now)
    store.redeem(used, now)
    for minutes in (0, 30, 59):
        store.make(HOUR, now + timedelta(minutes=minutes))
        with pytest.raises(UsedToken):
            store.redeem(used, now + timedelta(minutes=minutes))
    store.make(HOUR, now + HOUR)
    kept = (tmp_path / "tokens.json").read_text()
    assert JoinToken.parse(used).digest not in kept
    assert kept.count("digest") == 3
    with pytest.raises(ExpiredToken):
        store.redeem(used, now + HOUR)


def test_no_secret_is_kept_and_the_file_is_for_its_owner_alone(
    store: TokenStore, tmp_path: Path, now: datetime
) -> None:
    text = store.make(HOUR, now)
    path = tmp_path / "tokens.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text[4:] not in path.read_text()
    assert JoinToken.parse(text).secret.hex() not in path.read_text()


@pytest.mark.parametrize("content", [b"", b"{", b'[{"digest": 1}]', b"\xff"])
def test_a_damaged_record_lets_nobody_in_and_is_not_overwritten(
    store: TokenStore, tmp_path: Path, now: datetime, content: bytes
) -> None:
    text = store.make(HOUR, now)
    (tmp_path / "tokens.json").write_bytes(content)
    with pytest.raises(ClusterStateError, match="is damaged: remove it, and make new tokens"):
        store.redeem(text, now)
    with pytest.raises(ClusterStateError):
        store.make(HOUR, now)
    assert (tmp_path / "tokens.json").read_bytes() == content


def is_let_in(state_dir: Path, text: str, now: datetime) -> bool:
    try:
        TokenStore(state_dir, FINGERPRINT).redeem(text, now)
    except UsedToken:
        return False
    return True


def test_of_processes_that_redeem_one_token_at_once_one_wins(tmp_path: Path, now: datetime) -> None:
    store = TokenStore(tmp_path, FINGERPRINT)
    texts = [store.make(HOUR, now) for _ in range(20)]
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        runs = [[pool.submit(is_let_in, tmp_path, text, now) for _ in range(4)] for text in texts]
        assert [sum(run.result(60) for run in each) for each in runs] == [1] * 20


def test_a_lifetime_is_above_zero(store: TokenStore, now: datetime) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        store.make(timedelta(0), now)
