"""Count which planted errors a check of labels finds: python scripts/planted_errors.py --help"""

if __name__ == "__main__":
    from _door import run

    run("experiments.embeddings.planted_errors_command")
