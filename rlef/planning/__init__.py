"""Sizes, memory and time by arithmetic, before anything is run: no torch, no weights."""
