"""Exactly-once steps over stages that fail: epochs, a stage's log length, the commit index. Pure: no clock, no socket."""
