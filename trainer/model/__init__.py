"""One frozen network in three roles: its call, its conditioning, its LoRA layers."""
