"""The faults that were found in this program once: what went wrong, and what holds since.

A test that shows that one is mended carries ``@pytest.mark.fault(number)``; ``make reliability`` runs those tests and
prints docs/reliability.md from what they said.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    seen: str
    holds: str


FAULTS = {
    44: Fault(
        "A decoder that hung or died took the run with it",
        "Decoding has a deadline in a process of its own: what hangs or dies costs one quarantined sample",
    ),
    64: Fault(
        "A checkpoint or an exported folder could name any class to build, and so run commands",
        "Every configuration passes one check, wherever it comes from, and only classes of the rooms are built",
    ),
    65: Fault(
        "A room between encoder and language model could read the answer that it was to predict",
        "Changing tokens at one place and later never changes logits before it, in every room",
    ),
    66: Fault(
        "Equal sample keys in two shards shared features and reference likelihoods",
        "A sample is identified by its data set, split, shard and key wherever something is remembered of it",
    ),
    67: Fault(
        "A sample's JSON chose where pictures of it were written, outside the output folder too",
        "The key is the shard's, and every file name that is made from data goes through one function",
    ),
    68: Fault(
        "A stage counted as finished whatever weights it had started from",
        "What a stage started from is part of its identity; one stage of a chain starts from the stage before it",
    ),
    69: Fault(
        "Running statistics of frozen parts went on moving",
        "A part that is not trained is in evaluation mode: no parameter and no buffer of it changes",
    ),
    70: Fault(
        "With accumulation a token's weight depended on the micro-batch that it was in",
        "The gradient of accumulated micro-batches is that of the large batch; batch_size is one optimiser step's",
    ),
    71: Fault(
        "A run that max_time had stopped could not be continued",
        "trainer.max_time is a budget for each call; the same command goes on from where it stopped",
    ),
    72: Fault(
        "One malformed sample ended a run with a traceback",
        "Every field of a sample is parsed in one place with typed errors, and the sample is quarantined",
    ),
    73: Fault(
        "The exported model turned floating-point frames to bytes and swallowed arguments",
        "An exported model does what its arguments say, or refuses them",
    ),
    74: Fault(
        "The blind control asked all questions in one batch, whatever their number",
        "The blind control goes through the questions in batches like everything else",
    ),
    75: Fault(
        "Numbers out of range trained, span for ever, or ended in tracebacks",
        "Ranges stand with the types and are checked with them, before any work",
    ),
    76: Fault(
        "Precisions were offered that crashed in training or in evaluation",
        "A precision trains and evaluates, or is refused before any work",
    ),
    77: Fault(
        "Several processes raced to clear a run's folder",
        "One process alone prepares the folder; the others wait for it",
    ),
    78: Fault(
        "Streams drew the same frames of a sample every time",
        "What is random about a sample is one function of seed, epoch and key, for streams too",
    ),
    79: Fault(
        "Large pictures and sparse archives got past the size limits",
        "Sizes are read from headers and checked against the limits before anything is decoded or allocated",
    ),
    80: Fault(
        "The vocabulary left out words of splits that had not been read for it, and videos were read for their text",
        "The vocabulary comes from the text of all splits, and only text is read for it",
    ),
    81: Fault(
        "DPO with cached features compared rounded features with exact ones",
        "Policy and reference see the same features, from one source",
    ),
    82: Fault(
        "A run could not go on with another number of processes",
        "Only what changes results is part of a run's identity",
    ),
    83: Fault(
        "A damaged last checkpoint of a finished stage was a dead end",
        "The newest checkpoint that can be verified is used, and said to be",
    ),
    84: Fault(
        "Checkpoints and data were read and hashed again and again",
        "A file is hashed once and remembered by path, size and time",
    ),
    85: Fault(
        "Corners of the command line ended in tracebacks, some of them after training",
        "Every mistake on the command line is one line, before any work",
    ),
    86: Fault(
        "Small ones: decay of A_log, a lost token, unusual line ends in predictions, names of splits, too long texts",
        "Each of them is right, or refused in one line",
    ),
    87: Fault(
        "Cut, reordered and shifted videos gave wrong frames without a word",
        "Frames are chosen by presentation time and are those of a full decode, whoever reads them",
    ),
    88: Fault(
        "Which checkpoint was evaluated or continued depended on clocks",
        "The order of a chain and the steps that are stored decide, and the file in use is printed",
    ),
    89: Fault(
        "Right answers in an unexpected form counted as wrong without a word",
        "The usual forms are read; what matches no option is counted and named; ambiguity is never guessed",
    ),
    90: Fault(
        "A job of a sweep dropped overrides that a single run applied",
        "A job's configuration is that of the single run",
    ),
    91: Fault(
        "Rotated and mirrored videos and pictures stood on their side or head, each reader in its own way",
        "One function turns display matrices and EXIF orientation upright in every reader",
    ),
    92: Fault(
        "A preview or a cover picture was read as the video",
        "The best video stream is read, attached pictures never, chosen in one place",
    ),
    93: Fault(
        "Stills numbered without zeros were read in the order of their letters",
        "Stills are in natural order",
    ),
    94: Fault(
        "Exports ignored revision, dtype and device_map; control tokens came in through a user's text",
        "Exports honour or refuse what they are given; a user's text stays text",
    ),
    95: Fault(
        "Joined archives lost everything after the first end mark",
        "What follows an end mark must be zeros, else the archive is refused by name",
    ),
    96: Fault(
        "One odd JSON value ended a run, or passed unseen",
        "What a sample may hold is written down and checked in one place",
    ),
    97: Fault(
        "A requeued cluster job could never start again",
        "There is one mechanism for checkpoints, and a requeued job goes on from it",
    ),
    98: Fault(
        "One long text, a jump in time stamps or a huge frame took all memory",
        "Text, time and pixels have limits, each with a message",
    ),
    99: Fault(
        "Two runs wrote into one folder; read-only, renamed or raced data folders stopped runs",
        "A run's folder is locked by its owner; data folders may be read-only, renamed and shared",
    ),
    100: Fault(
        "Quotes, brackets and numbers in names and questions were taken for syntax or arithmetic",
        "Free text and names are strings whatever they look like; times are checked against the clip",
    ),
    101: Fault(
        "Small ones: capital file endings, resource forks, unusual line ends, locales, pixel aspect ratio, full disks",
        "Each of them is read rightly, or refused in one line",
    ),
    102: Fault(
        "Settings known from Lightning and other programs were only called unknown",
        "They exist, or the answer names the setting that does the same here",
    ),
    103: Fault(
        "A DINOv2 of another image size, or with registers, could not be FoveatedVLM's encoder",
        "An encoder's sizes come from its source",
    ),
    104: Fault(
        "Words of the field (qwen, siglip, vnbench) were unknown without a hint",
        "The words exist, or the answer names what is meant",
    ),
    105: Fault(
        "After a demo there was no page to look at",
        "report.html has plots, wrong answers first and where the model looked",
    ),
    107: Fault(
        "A mean left out tasks of one's own multiple choice without a word",
        "Nothing is left out of a mean unless its name says so; benchmark=choices documents its forms",
    ),
    108: Fault(
        "Tables, LLaVA JSON and folders of videos were refused; advice named settings that do not exist",
        "hvlm prepare takes them; messages name the keys found and expected, and advice can be followed",
    ),
    109: Fault(
        "A first try that failed kept the run's name from being used again",
        "A run's folder belongs to its settings once a step is saved",
    ),
    110: Fault(
        "Words outside the vocabulary vanished in training and answers",
        "One line counts them and shows examples",
    ),
    111: Fault(
        "Most models could not be asked about a video; only greedy answers",
        "Models that cannot watch a stream read the clip whole; answers may be drawn by chance",
    ),
    112: Fault(
        "Sweeps used processors that were not theirs, lost earlier rows and had no means over seeds",
        "Usable processors are counted, rows stay, seeds are put together, W&B holds the results",
    ),
    113: Fault(
        "There was no library: sixteen lines to build a model, no wheel that runs",
        "hvlm.load and hvlm.build; a wheel works in an empty folder",
    ),
    114: Fault(
        "Help and mistakes on the command line waited for torch",
        "What needs no torch is said before torch is imported",
    ),
    115: Fault(
        "Reports showed right answers first, one point a curve, pictures without labels",
        "Wrong answers come first, with labels, questions and curves",
    ),
    116: Fault(
        "Small first steps failed: devices alone, tasks misspelt, Ctrl-C, other folders, exports without generate",
        "Each works, or is refused in one line that says the way out",
    ),
}
