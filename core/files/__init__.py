"""Bytes on disk: safetensors headers, hashes, atomic writes, the text inside PNGs."""
