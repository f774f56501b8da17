"""What keeps layers from being offloaded."""


class OffloadError(ValueError):
    """Offloading cannot work so; the message is one line that names the remedy."""
