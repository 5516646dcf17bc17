"""Instruction and process reward models: train, score, evaluate, serve."""

__version__ = "0.1.0"
