"""Print the tables of docs/embeddings.md: python scripts/embedding_tables.py"""

if __name__ == "__main__":
    from _door import run

    run("experiments.embeddings.tables")
