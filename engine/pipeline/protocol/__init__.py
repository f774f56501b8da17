"""Exactly-once steps over stages that fail: epochs, a stage's log length, the commit index. No clock, no socket."""
