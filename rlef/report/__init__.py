"""One self-contained page of a run, finished or not, or of several; a file a section. It only reads, and no model text in it can act."""
