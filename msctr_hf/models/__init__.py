"""Networks, objective and image processors: the code that is saved with the weights of every network."""
