"""`msctr push` in a clone: python scripts/push_to_hub.py --model runs/hrnet --hub_model_id USER/NAME"""

if __name__ == "__main__":
    from _door import run

    run("msctr_hf.commands.push")
