"""Evaluate: ``python eval.py checkpoint=runs/demo``. What it does stands in hvlm/commands/eval.py; installed, it is
``hvlm eval``."""

from hvlm.commands.eval import evaluate

if __name__ == "__main__":
    evaluate()
