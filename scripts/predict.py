# /// script
# requires-python = ">=3.11"
# dependencies = ["msctr_hf[train]"]
#
# [tool.uv.sources]
# msctr_hf = { path = ".." }
# ///
"""`msctr predict` in a clone: python scripts/predict.py --model runs/quickstart --input street.jpg"""

if __name__ == "__main__":
    from _door import run

    run("msctr_hf.commands.predict")
