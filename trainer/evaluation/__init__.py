"""Images of teacher and students, measured."""
