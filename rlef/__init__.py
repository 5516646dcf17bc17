"""Reinforcement learning from evolved feedback."""

__version__ = "0.1.0"
