"""Prompts: read from files and images, alternatives drawn."""
