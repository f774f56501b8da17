"""A token is told from a mistyped one, pins its cluster, and never shows its secret."""

import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.join_token import (
    JoinToken,
    MistypedToken,
    OtherCluster,
    OtherTokenVersion,
)

EXPIRY = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
TOKEN = JoinToken(bytes(range(20)), "ab" * 32, EXPIRY)
ALPHABET = string.ascii_letters + string.digits + "-_"


def test_a_token_is_read_back_with_space_around_it() -> None:
    assert JoinToken.parse(f"  {TOKEN.text}\n") == TOKEN


def test_a_token_is_short_and_fits_an_address_and_a_shell() -> None:
    assert len(TOKEN.text) == 84
    assert set(TOKEN.text) <= set(ALPHABET)


def test_every_token_is_another() -> None:
    made = [JoinToken.make("ab" * 32, EXPIRY) for _ in range(50)]
    assert len({token.secret for token in made}) == 50
    assert min(len(token.secret) for token in made) * 8 >= 128


@given(st.integers(4, 83), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_a_mistyped_token(place: int, character: str) -> None:
    mistyped = TOKEN.text[:place] + character + TOKEN.text[place + 1 :]
    if mistyped == TOKEN.text:
        assert JoinToken.parse(mistyped) == TOKEN
    else:
        with pytest.raises(MistypedToken):
            JoinToken.parse(mistyped)


@given(st.integers(4, 82))
def test_two_characters_in_the_wrong_order_are_a_mistyped_token(place: int) -> None:
    text = TOKEN.text
    swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    if swapped != text:
        with pytest.raises(MistypedToken):
            JoinToken.parse(swapped)


@given(st.integers(0, 83), st.integers(1, 84))
def test_a_part_of_a_token_is_a_mistyped_token(begin: int, length: int) -> None:
    part = TOKEN.text[begin : begin + length]
    if part != TOKEN.text:
        with pytest.raises(MistypedToken):
            JoinToken.parse(part)


@given(st.text() | st.text(ALPHABET).map(lambda text: "dl1_" + text))
def test_any_other_text_is_a_mistyped_token(text: str) -> None:
    with pytest.raises((MistypedToken, OtherTokenVersion)):
        JoinToken.parse(text)


def test_a_token_of_another_version_is_told_as_such() -> None:
    with pytest.raises(OtherTokenVersion, match="version 2 and this distllm knows version 1"):
        JoinToken.parse(TOKEN.text.replace("dl1_", "dl2_"))


def test_a_token_fits_its_own_authority_alone(authority: ClusterAuthority, now: datetime) -> None:
    JoinToken.make(authority.fingerprint, EXPIRY).check_authority(authority.certificate_pem)
    for pem in (authority.certificate_pem, b"", b"-----BEGIN CERTIFICATE-----\n"):
        with pytest.raises(OtherCluster, match="is of another cluster"):
            TOKEN.check_authority(pem)


def test_a_secret_is_not_shown_and_not_in_the_digest() -> None:
    assert "secret" not in repr(TOKEN)
    assert TOKEN.secret.hex() not in TOKEN.digest
    assert JoinToken(bytes(20), TOKEN.fingerprint, EXPIRY).digest != TOKEN.digest


def test_a_token_says_that_its_cluster_speaks_plaintext() -> None:
    plain = JoinToken.make("ab" * 32, EXPIRY, is_encrypted=False)
    assert plain.text.startswith("dl1p_")
    assert JoinToken.parse(plain.text) == plain
    assert not JoinToken.parse(plain.text).is_encrypted
    assert JoinToken.parse(TOKEN.text).is_encrypted
