"""The reward models behind HTTP: `python -m reward_models serve`."""
