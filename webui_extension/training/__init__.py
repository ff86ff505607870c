"""The tab, its routes, and the card's memory."""
