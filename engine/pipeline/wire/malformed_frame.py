"""Why received bytes are no frame: one exception a reason, none of which says more than the bytes do."""


class MalformedFrame(ValueError):
    """Bytes that are no frame of this protocol."""


class WrongMagic(MalformedFrame):
    def __init__(self, found: bytes) -> None:
        super().__init__(f"begins with {found.hex()}, which is no frame of distllm; is this the right port?")


class OtherVersion(MalformedFrame):
    def __init__(self, theirs: int, ours: int) -> None:
        super().__init__(
            f"protocol version {theirs} was received where {ours} is spoken; run the same distllm on every machine"
        )


class OversizedFrame(MalformedFrame):
    def __init__(self, num_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"a frame of at least {num_bytes} bytes where {max_bytes} are accepted; "
            "raise network.max_message_size_mb on every machine"
        )


class TruncatedFrame(MalformedFrame):
    def __init__(self, num_bytes: int, due: int) -> None:
        super().__init__(f"ended after {num_bytes} bytes of at least {due}")


class TrailingBytes(MalformedFrame):
    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"{num_bytes} bytes after the end of a frame")


class ChecksumDiffers(MalformedFrame):
    def __init__(self, part: str, found: int, due: int) -> None:
        super().__init__(
            f"the {part} has the checksum {found:08x} where {due:08x} is due: it was damaged on its way"
        )


class OtherKind(MalformedFrame):
    def __init__(self, kind: int, wanted: str) -> None:
        super().__init__(f"a frame of kind {kind} is no {wanted}")


class MalformedHeader(MalformedFrame):
    """What an undamaged header says is not what this protocol can say."""
