"""A stage's part of a model: some of its decoder layers, loaded alone and run over a paged KV cache."""
