"""Nodes that train, and the panel's routes."""
