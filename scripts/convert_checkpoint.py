"""`msctr convert` in a clone: python scripts/convert_checkpoint.py --checkpoint chkpt.pt --config ..."""

if __name__ == "__main__":
    from _door import run

    run("msctr_hf.commands.convert")
