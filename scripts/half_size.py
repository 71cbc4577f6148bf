"""Write CamVid at half its size: python scripts/half_size.py --help"""

if __name__ == "__main__":
    from _door import run

    run("experiments.half_size")
