"""Which attention kernel a network uses."""
