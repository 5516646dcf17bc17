"""The commands of `rlef`, one file each: `add` describes a command, `run` does it and imports what it needs."""
