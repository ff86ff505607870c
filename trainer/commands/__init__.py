"""The commands, each put together from the rooms below."""
