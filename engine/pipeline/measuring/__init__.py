"""What a peer measures for placement: how fast a layer of the model is on it, and what its links do."""
