"""What the first rank of a stage has the others do, in its words; it does the same at the same time."""

import msgspec


class Order(msgspec.Struct, frozen=True, tag=True):
    """One word on the connection of each rank."""


class ComputeStep(Order, frozen=True, tag=True):
    """Compute the step that lies in the frame, and say when that is done."""


class Allocate(Order, frozen=True, tag=True):
    """Have a KV pool of so many blocks."""

    num_blocks: int


class RunLayer(Order, frozen=True, tag=True):
    """Run the last layer alone, on so many rows."""

    num_rows: int


class RunHead(Order, frozen=True, tag=True):
    """Run all but the last layer, on so many rows, and say when that is done."""

    num_rows: int


AnyOrder = ComputeStep | Allocate | RunLayer | RunHead
encode_order = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(AnyOrder).decode
DONE = b"done"
