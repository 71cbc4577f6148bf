"""Exchange with other formats and places."""
