"""Stage 2, supervised fine-tuning: questions and answers, loss on the answer only."""

from hvlm.data.views import Questions
from hvlm.stage._text import TextStage


class SFT(TextStage):
    """−Σ log p(answer token | video, question, earlier answer tokens)."""

    view = Questions()
    scored = "answer"
