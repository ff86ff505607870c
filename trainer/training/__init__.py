"""Updates, optimizers, saved states, the student's file."""
