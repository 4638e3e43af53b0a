"""The faults that were found once, up to 63 in the parts that this program is made of and from 64 on in itself: what
went wrong, and what holds.

A test that shows that one is mended carries ``@pytest.mark.fault(number)``; ``make reliability`` runs those tests and
prints docs/reliability.md from what they said.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    seen: str
    holds: str


FAULTS = {
    1: Fault(
        "A run resumed in the middle of an epoch read other samples, some twice and some never",
        "The order is a pure function of seed and position: batches, loss and weights are those of one whole run",
    ),
    2: Fault(
        "A stream of shards began again at its first sample when it was resumed",
        "Refused, unless dataset.allow_inexact_resume=true says that other samples may come",
    ),
    3: Fault(
        "A loader without a length lost a batch at every resume",
        "Every training loader has a length, and state counts finished optimiser steps, not batches that were fetched",
    ),
    4: Fault(
        "Exact data on resume depended on how the data were read",
        "Exact with and without workers",
    ),
    5: Fault(
        "Dropout after a resume drew other numbers",
        "Random states of every process are stored and put back before the first batch",
    ),
    6: Fault(
        "Augmentation that drew from a global random state was not repeatable",
        "What is random about a sample is a function of seed, epoch and key alone, whoever reads it",
    ),
    7: Fault(
        "Resuming read again everything that had been read",
        "Reading begins at the position itself: nothing of the past is read or decoded",
    ),
    8: Fault(
        "Another number of workers could not resume, without a message",
        "Workers and processes may change; what would change the order is refused with both values",
    ),
    9: Fault(
        "A schedule that asked for the number of steps made the trainer forget the place on resume",
        "The place is the step's number: such a schedule resumes exactly, too",
    ),
    10: Fault(
        "A kill while saving left orphans, or half a checkpoint",
        "Written beside its place, synced, moved: after fifty kills the last one loads, and nothing stays behind",
    ),
    11: Fault(
        "On another file system a kill left half a checkpoint under its final name",
        "Nothing goes through $TMPDIR, so no move is a copy",
    ),
    12: Fault(
        "A full disk ended the run and damaged the newest checkpoint",
        "The old file stays whole, the half-written one goes, and one line names file and space",
    ),
    13: Fault(
        "A full $TMPDIR ended the run though the target had room",
        "$TMPDIR is not used",
    ),
    14: Fault(
        "A truncated last checkpoint was a dead end beside a good one",
        "The furthest checkpoint that verifies is used, and the one that does not is named",
    ),
    15: Fault(
        "A flipped bit loaded as another weight",
        "A sum is written with every checkpoint and compared when it is read",
    ),
    16: Fault(
        "Asked to resume where nothing was, training began from scratch with a warning",
        "resume=must is an error, resume=auto says in a line what it does",
    ),
    17: Fault(
        "SIGTERM ended a run with nothing saved and status 0",
        "The step is finished and saved, and the status is 143",
    ),
    18: Fault(
        "Saving inside a cluster's signal handler stalled",
        "The handler sets a flag; the save comes at the end of the step",
    ),
    19: Fault(
        "A process of a run that was killed left the others waiting",
        "The others end within a minute and say so, and the run goes on with the processes that are left",
    ),
    20: Fault(
        "A shard that was cut inside a member lost the rest of its samples",
        "Refused by name, when it is indexed and when it is read",
    ),
    21: Fault(
        "A shard that was cut between two members lost samples without a word",
        "The end mark must be there, and counts, sizes and sums are those of the manifest",
    ),
    22: Fault(
        "A damaged header in the middle of a shard was taken for its end",
        "What follows the end must be zeros, else the shard is refused by name",
    ),
    23: Fault(
        "Samples that lacked a member passed as half samples",
        "Each is named with shard and key, counted, and left out; members need not stand together",
    ),
    24: Fault(
        "A member that stood in a shard twice was an odd error, or passed",
        "Refused by name before training",
    ),
    25: Fault(
        "Flipped bytes of a video passed",
        "sha256 of every shard is compared before training",
    ),
    26: Fault(
        "An empty, absent or HTML shard was skipped whole",
        "A damaged shard always stops the run, by name",
    ),
    27: Fault(
        "A bad picture or JSON was an error with an empty message",
        "It is written down with shard, key, field and reason",
    ),
    28: Fault(
        "Passing over bad samples had no count and no limit",
        "Counted, listed in quarantine.jsonl, and too many of them stop the run",
    ),
    29: Fault(
        "Keys that climb out of a folder stayed as they were",
        "Refused before anything is named after them; links and devices are never followed",
    ),
    30: Fault(
        "A pickled member of a shard ran code when it was decoded",
        "Only kinds of files on a list are read, and nothing is unpickled",
    ),
    31: Fault(
        "A shard list could name a shell command",
        "Only paths and http(s) are opened, by a reader of our own",
    ),
    32: Fault(
        "A small picture unfolded to gigabytes",
        "Its header is read first, and 50 megapixels are the limit",
    ),
    33: Fault(
        "A small compressed archive unfolded to gigabytes",
        "Compressed archives are refused unread",
    ),
    34: Fault(
        "A header that claims gigabytes",
        "An error that names the shard; nothing is allocated for it",
    ),
    35: Fault(
        "Empty files and texts in place of videos were errors of each decoder's own kind",
        "One typed error with sample, field and reason",
    ),
    36: Fault(
        "A video cut in half failed in another way in each reader",
        "What is there is read, or the sample is named",
    ),
    37: Fault(
        "Readers disagreed about a video that lacks its very end",
        "What is there is read",
    ),
    38: Fault(
        "Damaged bytes gave damaged frames, seen by no decoder",
        "The shard's sum says so before training",
    ),
    39: Fault(
        "A turned video crashed one reader and lay on its side in another",
        "Upright in every reader",
    ),
    40: Fault(
        "A file with sound alone crashed in three ways",
        "The same typed error as for any video that cannot be read",
    ),
    41: Fault(
        "A variable frame rate was sampled by frame number",
        "Sampled by time",
    ),
    42: Fault(
        "A variable frame rate in a transport stream failed",
        "Sampled by time as in any container",
    ),
    43: Fault(
        "One frame, odd sizes, two hours",
        "Read, in little memory",
    ),
    44: Fault(
        "A decoder that hung or died took the run with it",
        "Decoding has a deadline in a process of its own: what hangs or dies costs one quarantined sample",
    ),
    45: Fault(
        "Readers kept memory of the videos that they had closed",
        "500 videos are opened, and neither memory nor open files grow",
    ),
    46: Fault(
        "A killed worker ended the run and named no sample",
        "One line names the clips that the workers were reading",
    ),
    47: Fault(
        "A hanging worker hung the run for ever",
        "There always is a deadline, and the clips are named",
    ),
    48: Fault(
        "Weights & Biases wrote elsewhere where its folder was read-only",
        "Said before training",
    ),
    49: Fault(
        "On a full disk Weights & Biases lost most of a run and reported success",
        "Metrics are written into the same folder as lines of JSON, and a full disk stops the run in one line",
    ),
    50: Fault(
        "Weights & Biases without a login stopped the run",
        "Offline unless asked for otherwise; then one line that says how to log in",
    ),
    51: Fault(
        "A job of a sweep that raised left no trace in a table",
        "Its status and its last words stand in the sweep's table",
    ),
    52: Fault(
        "A job of a sweep that was killed ended the sweep",
        "Each job is a process of its own; the others run, and the next call runs what is missing",
    ),
    53: Fault(
        "The advice about a misspelt key was to add it",
        "The word that was meant is named, and unknown keys are refused however they are written",
    ),
    54: Fault(
        "A missing option",
        "The options are listed",
    ),
    55: Fault(
        "A value of the wrong type was accepted",
        "Types are checked before any work",
    ),
    56: Fault(
        "A mandatory value that was left out went unnoticed",
        "Missing values are named before any work",
    ),
    57: Fault(
        "A pickled checkpoint ran code",
        "Only tensors and plain values are read, whatever the environment says",
    ),
    58: Fault(
        "A checkpoint behind a URL ran code",
        "URLs are refused",
    ),
    59: Fault(
        "An environment variable switched the safety of reading off",
        "Nothing is read while it is set",
    ),
    60: Fault(
        "A checkpoint could name the class that it is rebuilt with",
        "Only classes of the rooms are built, and releases of Lightning that do otherwise are not installed",
    ),
    61: Fault(
        "A checkpoint with configuration objects in it could not be resumed",
        "Only plain values are saved; another is refused when it is saved, by its place",
    ),
    62: Fault(
        "Pretrained weights could be pickles, and code beside them was run when a question was answered with yes",
        "Tensors alone are read, safetensors first; code of a folder is never run, and no setting says otherwise",
    ),
    63: Fault(
        "A bad release of a package could come in with the next installation",
        "requirements.lock pins every package by its hashes, and the checks of every change install by it",
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
    106: Fault(
        "The README took many screens to find one thing",
        "One screen and links",
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
