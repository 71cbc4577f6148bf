"""`python -m msctr_hf`: the command `msctr`."""

from msctr_cli import main

if __name__ == "__main__":
    main()
