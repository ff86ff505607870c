"""LoRA files: key names, layout, arithmetic, metadata."""
