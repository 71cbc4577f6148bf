"""Building, optimising and saving a network."""
