"""The world of the embedded teachers, and how their images are measured."""
