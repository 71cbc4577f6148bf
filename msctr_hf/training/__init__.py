"""Building, optimizing and saving a network."""
