"""Commands of `msctr`: one file each, with its flags and its `main`, which imports what it needs."""
