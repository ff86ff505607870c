"""What lies on this computer: data folder, model folders, preferences, files."""
