"""`msctr demo` in a clone: python scripts/demo.py --model runs/quickstart"""

if __name__ == "__main__":
    from _door import run

    run("msctr_hf.commands.demo")
