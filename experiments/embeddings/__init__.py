"""What embeddings are good for, on CamVid: planted errors that a check of labels finds, and searches by clicks."""
