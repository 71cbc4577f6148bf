# /// script
# requires-python = ">=3.11"
# dependencies = ["msctr_hf[train]"]
#
# [tool.uv.sources]
# msctr_hf = { path = ".." }
# ///
"""`msctr train` in a clone: accelerate launch scripts/train.py --config configs/cityscapes/hrnet_w48.yaml ..."""

if __name__ == "__main__":
    from _door import run

    run("msctr_hf.commands.train")
