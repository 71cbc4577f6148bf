"""Data sets as Hugging Face `datasets`, augmentation and batching."""
