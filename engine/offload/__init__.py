"""Layers that do not fit stay outside the memory that computes, and come in their turn, ahead of their use."""
