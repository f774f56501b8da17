"""How much memory a step's intermediate results take. Importable without torch."""

_FLOAT32_BYTES = 4


def activation_bytes(num_tokens: int, vocab_size: int, hidden_size: int) -> int:
    """Bytes that stay free beside the KV pool for a step of `num_tokens`.

    The widest tensors are logits, or an MLP's inside at up to 16 times the hidden size; two of them live at once.
    """
    return 2 * num_tokens * max(vocab_size, 16 * hidden_size) * _FLOAT32_BYTES
