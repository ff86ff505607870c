"""The commands, each put together from the rooms before this one."""
