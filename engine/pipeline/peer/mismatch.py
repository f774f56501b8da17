"""Why a coordinator cannot be reached that is there: one of the two ends encrypts, and the other does not."""

from distllm.engine.pipeline.transport.app import Reply
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable, resolve

MISMATCH_PATH = "/v1/mismatch"
_TIMEOUT_S = 5.0
_CONFLICT = 409


def explain_mismatch(*, is_encrypted: bool) -> Reply:
    """The answer of a coordinator that encrypts, or does not, to a machine that expects the opposite."""
    speaks, setting = ("TLS alone", "true") if is_encrypted else ("plaintext alone", "false")
    return Reply.refusal(
        _CONFLICT,
        f"the coordinator speaks {speaks}, as its network.encryption is {setting}, and this machine has joined one "
        "that does not: join again, with a token that `distllm token` makes there now",
    )


async def find_mismatch(coordinator: Address, *, is_encrypted: bool) -> str | None:
    """For a machine that encrypts, or does not, and reaches nobody so: what the coordinator says to the opposite.

    It trusts nobody and tells nothing but that, so it does no harm to ask in plaintext.
    """
    client: Http2Client | None = None
    try:
        client = Http2Client(coordinator, await resolve(coordinator), None, None, is_encrypted=not is_encrypted)
        status, answer = await client.post(MISMATCH_PATH, b"", _TIMEOUT_S)
    except Unreachable:
        return None
    finally:
        if client is not None:
            await client.close()
    return answer.decode(errors="replace") if status == _CONFLICT else None
