"""The worker's engine: the only place that imports diffusers, transformers and peft."""
