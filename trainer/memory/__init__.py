"""Fitting an update into the memory that is there."""
