"""``python -m hvlm`` is the command ``hvlm``."""

from hvlm.commands import run

if __name__ == "__main__":
    run()
