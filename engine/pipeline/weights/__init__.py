"""How stages get their weights: hashed by the coordinator, fetched by peers without a copy of the model."""
