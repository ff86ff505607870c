"""Schedules, predictions, sampling, families and files: what hosts and trainer share."""
