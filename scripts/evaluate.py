# /// script
# requires-python = ">=3.11"
# dependencies = ["msctr_hf[train]"]
#
# [tool.uv.sources]
# msctr_hf = { path = ".." }
# ///
"""`msctr evaluate` in a clone: python scripts/evaluate.py --model runs/quickstart --dataset synthetic_scenes"""

if __name__ == "__main__":
    from _door import run

    run("msctr_hf.commands.evaluate")
