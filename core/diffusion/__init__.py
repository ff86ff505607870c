"""Schedules, predictions, guidance, the sampler. Knows no recipe and no model family."""
