"""`msctr export` in a clone: python scripts/export.py --model runs/quickstart --output_dir exported"""

if __name__ == "__main__":
    from _door import run

    run("msctr_hf.commands.export")
