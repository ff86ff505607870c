"""Seed sheets and the diversity of images."""
