"""Train: ``python train.py experiment=demo``. What it does stands in hvlm/commands/train.py; installed, it is ``hvlm
train``."""

from hvlm.commands.train import train

if __name__ == "__main__":
    train()
