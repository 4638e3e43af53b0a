"""Stage 1, alignment: captions, loss on every text token, learning rates that converge (fVLM)."""

from hvlm.data.views import Captions
from hvlm.stage._text import TextStage


class Align(TextStage):
    """−Σ log p(token | video, earlier tokens) over all tokens of the chat, the question's too."""

    view = Captions()
    scored = "all"
