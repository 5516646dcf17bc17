"""Label files in the shapes of other projects: judged steps of solutions, and preference pairs as ranked lists."""
