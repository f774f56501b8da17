"""The version of what peers and coordinator say to each other: one that differs is refused."""

PROTOCOL_VERSION = 2
