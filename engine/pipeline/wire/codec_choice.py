"""Which codec is fastest over an edge, from what has been measured. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from distllm.engine.pipeline.wire.codec_names import CodecName

_LEAST_GAIN = 0.1  # of the time; less is within what measurements differ by, and a codec alters activations


@dataclass(frozen=True, slots=True)
class CodecCost:
    """What a codec takes of a token: bytes on the edge, and time at both ends."""

    bytes_per_token: int
    encode_rows_per_s: float
    decode_rows_per_s: float

    @property
    def coding_s(self) -> float:
        """To encode and decode a token's."""
        return 1 / self.encode_rows_per_s + 1 / self.decode_rows_per_s

    def seconds_per_token(self, goodput_bytes_per_s: float) -> float:
        """Encoding, sending and decoding follow each other, as they do in a step."""
        return self.bytes_per_token / goodput_bytes_per_s + self.coding_s


def choose_codec(
    allowed: Collection[CodecName], goodput_bytes_per_s: float, costs: Mapping[CodecName, CodecCost]
) -> CodecName:
    """The fastest codec that is allowed, or `none`, which always is, where no other saves a tenth of its time.

    `costs` has `none` and every codec that is allowed.
    """
    plain_s = costs["none"].seconds_per_token(goodput_bytes_per_s)
    times: dict[CodecName, float] = {
        name: costs[name].seconds_per_token(goodput_bytes_per_s) for name in sorted(allowed) if name != "none"
    }
    fastest = min(times, key=lambda name: times[name], default=None)
    if fastest is None or times[fastest] > plain_s * (1 - _LEAST_GAIN):
        return "none"
    return fastest
