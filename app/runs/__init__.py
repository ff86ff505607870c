"""Run directories and what stands in them."""
