"""Score searches by clicks in the embeddings of a network: python scripts/clicks.py --help"""

if __name__ == "__main__":
    from _door import run

    run("experiments.embeddings.clicks_command")
