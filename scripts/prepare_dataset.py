"""`msctr prepare` in a clone: python scripts/prepare_dataset.py --dataset cityscapes --data_dir official"""

if __name__ == "__main__":
    from _door import run

    run("msctr_hf.commands.prepare")
