"""The emoji world: captions that leave things open, and a judge that says what images show."""
