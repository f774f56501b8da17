"""Which peer serves which layers: measured, predicted, and searched exactly. Never imports torch."""
