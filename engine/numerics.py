"""Names how an engine computes: equal names, equal bits. Importable without torch.

KERNELS [/ how weights are quantized] [/ kv and how KV is] [/ tp and over how many ranks]

Of stages that differ, one after the other with | between them; then "in" and the codec of what goes from one to the
next, if that loses precision.
"""


def name_numerics(computed: str, num_ranks: int) -> str:
    """Of an engine whose ranks each compute as `computed` says."""
    return computed if num_ranks == 1 else f"{computed}/tp{num_ranks}"


def quantization_of(numerics: str) -> str | None:
    """How one engine's weights are quantized, such as w8; None where they are not."""
    parts = numerics.split("/")[1:]
    return next((part for part in parts if not part.startswith(("kv", "tp"))), None)


def kernels_of(numerics: str) -> str:
    """The kernels' order of sums alone, of which any engine may be asked; of several stages', the first one's."""
    return numerics.partition("|")[0].partition("/")[0]
