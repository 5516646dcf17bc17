"""Where figures go beside metrics.jsonl: one file a service."""
