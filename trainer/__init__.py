"""What only the worker loads: diffusers, transformers, peft, accelerate. No host imports it."""
