"""DistributedLLM: the OpenAI-compatible inference server for whatever hardware you have."""

__version__ = "0.1.0"
