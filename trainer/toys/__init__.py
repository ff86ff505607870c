"""The world of the embedded teachers: how it is drawn, measured, and described to them."""
