"""A package to share: the LoRA, images with their settings, and every text that sites read."""
