"""The trainer: host-safe parts here, the worker's engine in `engine`."""
