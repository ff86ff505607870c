"""From files to a network in memory."""
