"""Public benchmarks of multiple choice whose questions are a table: a YAML says which column holds what."""

from __future__ import annotations

from hvlm.benchmark._published import PublishedTable


class Published(PublishedTable):
    """path: of the local copy. tables: the files of questions in it, as patterns. videos: its folder of videos.
    question, answer, video, task, start, end: the columns' names (``a|b``: the first that a row has). options: columns
    with an option each, or one with all; without one, the question's last lines are the options. absent: an option
    that means that there is none. counts: the answer is a place from 0, not a letter or a text. by: columns whose
    values have an accuracy of their own.
    marks: before an option in the prompt, ``A.`` or ``(A)``. before, after: text around the question with its options.
    scoring: ``generate`` reads what the model writes (strictly: what cannot be read is wrong), ``loglik_letter`` takes
    the likeliest letter, ``loglik_mean`` and ``loglik_sum`` the likeliest option of the bare question.
    max_new_tokens: of a written answer. tasks: names of those to ask, None: all. batch_size: clips per forward pass.
    limit: that many clips, evenly spread. blind: also ask everything without frames. num_frames: sampled per clip,
    None: as many as the model was trained with. apart: tasks that the means leave out.
    """
