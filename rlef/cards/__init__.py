"""What stands beside data and models that leave a run."""
