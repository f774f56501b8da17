"""A peer that computes its layers and then says another token: `python -m tests.cluster.lying_peer START`."""

import sys
from dataclasses import replace

from distllm.engine.interface import StepOutput
from distllm.engine.pipeline.messages import StepHeader
from distllm.engine.pipeline.peer import main as program
from distllm.engine.pipeline.peer.peer import Peer

TOKEN = 1_000_000


class LyingPeer(Peer):
    """Its tokens are none of any vocabulary."""

    async def _send_result(self, header: StepHeader, output: StepOutput) -> None:
        chunks = [replace(chunk, token_id=TOKEN) for chunk in output.chunks]
        await super()._send_result(header, replace(output, chunks=chunks))


if __name__ == "__main__":
    setattr(program, "Peer", LyingPeer)  # noqa: B010 (a class is none that may be assigned to)
    sys.exit(program.main(sys.argv[1]))
