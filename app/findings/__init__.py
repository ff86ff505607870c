"""What goes wrong in a run, in plain words."""
