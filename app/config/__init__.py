"""The settings of a distillation, their presets, and the request that holds them."""
