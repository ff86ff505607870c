"""The sampler, its accordion and what sets it up."""
