"""Networks, objective and image processor: the folder that travels to the Hub with the weights."""
