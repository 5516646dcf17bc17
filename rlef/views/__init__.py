"""What a run looks like from outside: in the terminal, beside another run, as a picture."""
