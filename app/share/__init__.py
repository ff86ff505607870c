"""A package to share: the LoRA, pictures with their settings, and every text that sites read."""
