"""The sampling contract inside a few-step LoRA, and what follows from it."""
