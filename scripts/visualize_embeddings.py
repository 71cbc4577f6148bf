"""`msctr embeddings` in a clone: python scripts/visualize_embeddings.py --model runs/quickstart"""

if __name__ == "__main__":
    from _door import run

    run("msctr_hf.commands.embeddings")
