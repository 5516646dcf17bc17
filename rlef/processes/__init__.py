"""A stage is started: here, in processes of its own, on several machines."""
