"""Import of exports of labeling tools: one module per format, and one that writes a folder data set."""
