"""What a module's name says about its weight. Importable without torch."""

_MLP_NAMES = frozenset(
    {"mlp", "feed_forward", "ffn", "block_sparse_moe", "shared_expert", "shared_experts", "experts", "fc1", "fc2"}
)
MLP_PATTERN = rf".*\.({'|'.join(sorted(_MLP_NAMES))})\..*"
"""A regular expression of the names of modules within MLPs."""

_ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate"})


def is_mlp(name: str) -> bool:
    """Whether the module called `name` is part of an MLP or of experts."""
    return not _MLP_NAMES.isdisjoint(name.split("."))


def is_router(name: str) -> bool:
    """Whether the module called `name` scores experts: small, and what a wrong choice costs is large."""
    return name.rpartition(".")[2] in _ROUTER_NAMES
