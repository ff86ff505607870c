"""The worker's half: everything that needs diffusers, transformers, peft or accelerate."""
