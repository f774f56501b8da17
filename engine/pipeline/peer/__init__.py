"""A peer's program: joins a cluster, loads the layers that it is given, and computes them step by step."""
