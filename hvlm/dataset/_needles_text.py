"""What is said about a clip: captions, questions with their options, vnbench questions, and chats without a video.

Every sentence is made from a template below and from the closed lists of values, so ``vocabulary`` can give the whole
grammar without any sample. Evidence (seconds, half-open) says what must have been seen to answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations
from string import Formatter
from typing import Any

import numpy as np

from hvlm.data.sampling import is_shown
from hvlm.dataset._needles_scene import (
    COLOURS,
    DIRECTIONS,
    DOMAINS,
    FLASHES,
    MAX_COUNT,
    MAX_OBJECTS,
    QUADRANTS,
    SHAPES,
    WORDS,
    Flash,
    Object,
    Recipe,
    Scene,
)
from hvlm.prompts import lettered_prompt

TRIES = 4
COMMA, THEN = " , ", " then "  # between things that are there together, and that follow each other

QUESTIONS = {
    "domain": "what kind of video is this ?",
    "shape": "what shape is the object ?",
    "colour": "what color is the object ?",
    "flash_colour": "what color is the {flash} ?",
    "flash_order": "what color flashed first ?",
    "bind_colour": "what color is the {shape} ?",
    "bind_shape": "what shape is the {colour} one ?",
    "count": "how many objects ?",
    "where": "where is the {colour} {shape} at the {when} ?",
    "direction": "which way does the {colour} {shape} move ?",
    "ret_edit1": "what word is in the subtitle ?",
    "ret_insert1": "what is in the inserted picture ?",
    "ret_insert2": "what was added to the inserted picture ?",
    "ord_edit1": "in what order do the words appear ?",
    "ord_insert1": "in what order do the inserted shapes appear ?",
    "ord_insert2": "in what order do the added shapes appear ?",
    "cnt_edit1": "how many subtitles appear ?",
    "cnt_edit2": "how many times does a {shape} appear ?",
    "cnt_insert1": "how many pictures are inserted ?",
}
# The set "keys": two wordings of one question, so that what is learned from one can be tested with the other.
KEYS = {"first": "which color does the {shape} have ?", "second": "the {shape} flashed in what color ?"}
CAPTIONS = {  # aspect: (ways to ask, text)
    "object": (("describe the object .", "what is moving ?"), "a {colour} {shape} moves {direction} ."),
    "flashes": (("describe the flashes .", "what flashes ?"), "a {colour} {flash} then a {colour2} {flash2} flash ."),
    "scene": (("describe the scene .",), "a {domain} video ."),
    "count": (("count the objects .",), "{number} objects ."),
    "objects": (("list the objects .",), "{things} ."),
    "shape": (
        ("describe the {shape} .",),
        "a {colour} {shape} moves {direction} from the {quadrant} to the {quadrant2} .",
    ),
    "colour": (("describe the {colour} one .",), "a {colour} {shape} ."),
    "keys": (("list the objects .",), "{things} ."),
    "needles": (("describe the needles .", "what was inserted ?"), "{things} ."),
}
VALUES: dict[str, Sequence[str]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "colour2": COLOURS,
    "flash": FLASHES,
    "flash2": FLASHES,
    "direction": tuple(DIRECTIONS),
    "quadrant": QUADRANTS,
    "quadrant2": QUADRANTS,
    "when": ("start", "end"),
    "domain": DOMAINS,
    "number": tuple(str(n) for n in range(1, MAX_COUNT + 1)),
    "things": tuple(f"a {c} {s}" for c in COLOURS for s in SHAPES) + WORDS,
}


def templates(set_name: str, wording: str = "both") -> list[str]:
    """The questions and captions of one set before anything is filled in, as the manifest names them. wording: of the
    set 'keys'."""
    if set_name == "keys":
        return [*key_templates(wording), CAPTIONS["scene"][1], CAPTIONS["keys"][1]]
    vnbench = {name for name in QUESTIONS if name.split("_")[0] in ("ret", "ord", "cnt")}
    asked = [text for name, text in QUESTIONS.items() if (name in vnbench) == (set_name == "vnbench")]
    return asked + [text for _, text in CAPTIONS.values()]


def vocabulary() -> Iterator[str]:
    """Sentences that hold every word any set can contain; the same whatever is generated."""
    sentences = [*QUESTIONS.values(), *KEYS.values()]
    for prompts, text in CAPTIONS.values():
        sentences += [*prompts, text]
    for template in sentences:
        slots = [name for _, name, _, _ in Formatter().parse(template) if name]
        for i in range(max((len(VALUES[name]) for name in slots), default=1)):
            yield template.format(**{name: VALUES[name][i % len(VALUES[name])] for name in slots})
    for values in (*VALUES.values(), (COMMA, THEN)):
        yield from values
    for question, answer in CHATS:
        yield question
        yield answer
    yield lettered_prompt("", VALUES["when"] * (TRIES // 2))


# ---------------------------------------------------------------------------------------------------------- captions


def captions(rng: np.random.Generator, scene: Scene, recipe: Recipe) -> list[dict[str, Any]]:
    """Short captions, each of one aspect; together they say everything that the questions ask."""
    made: list[dict[str, Any]] = []

    def add(aspect: str, evidence: list[list[float]], **values: str) -> None:
        prompts, text = CAPTIONS[aspect]
        prompt = str(rng.choice(prompts)).format(**values)
        if is_shown(evidence, recipe.shown / recipe.fps):
            made.append({"prompt": prompt, "text": text.format(**values), "evidence": evidence})

    add("scene", [recipe.whole], domain=scene.domain)
    if scene.needles:
        things = THEN.join(needle.word or f"a {needle.colour} {needle.shape}" for needle in scene.needles)
        add("needles", [recipe.window(needle.first, needle.last) for needle in scene.needles], things=things)
        return made
    if recipe.set == "keys":  # each colour follows the word that it is looked up by, as a question's last words do
        listed = sorted(scene.flashes, key=lambda flash: SHAPES.index(flash.shape))
        seen = [recipe.window(flash.frame) for flash in scene.flashes]
        add("keys", seen, things=COMMA.join(f"{flash.shape} {flash.colour}" for flash in listed))
        return made
    first, second = scene.flashes
    names = {"colour": first.colour, "flash": first.shape, "colour2": second.colour, "flash2": second.shape}
    add("flashes", [recipe.window(flash.frame) for flash in scene.flashes], **names)
    if recipe.set == "easy":
        (thing,) = scene.objects
        add("object", _ends(recipe), colour=thing.colour, shape=thing.shape, direction=thing.direction)
        return made
    add("count", [recipe.whole], number=str(len(scene.objects)))
    listed = sorted(scene.objects, key=lambda thing: COLOURS.index(thing.colour))  # a fixed order can be learnt
    add("objects", [recipe.whole], things=COMMA.join(f"a {thing.colour} {thing.shape}" for thing in listed))
    for thing in scene.objects:
        evidence = [_where_evidence(thing, recipe, end=False), _where_evidence(thing, recipe, end=True)]
        quadrants = {"quadrant": thing.quadrant(0, recipe.size), "quadrant2": thing.quadrant(-1, recipe.size)}
        values = {"colour": thing.colour, "shape": thing.shape}
        add("shape", evidence, **values, **quadrants, direction=thing.direction)
        add("colour", [recipe.whole], **values)
    return made


def _ends(recipe: Recipe) -> list[list[float]]:
    """To tell a direction one must have looked in the first and in the last third."""
    third = recipe.duration / 3
    return [[0.0, round(third, 6)], [round(2 * third, 6), round(recipe.duration, 6)]]


def _where_evidence(thing: Object, recipe: Recipe, end: bool) -> list[float]:
    """While the object is still in the quadrant where it starts (or already in the one where it ends)."""
    stays = thing.stays(end, recipe.size)
    return recipe.window(recipe.frames - stays, recipe.frames - 1) if end else recipe.window(0, stays - 1)


# --------------------------------------------------------------------------------------------------------- questions


def questions(rng: np.random.Generator, scene: Scene, recipe: Recipe) -> list[dict[str, Any]]:
    """All questions of a clip that the configured sampler's frames can answer."""
    asked: list[dict[str, Any]] = []

    def ask(task: str, answer: str, tries: list[dict], evidence: list[list[float]], **values: str) -> None:
        if not is_shown(evidence, recipe.shown / recipe.fps):
            return
        wrong = [option for option in tries[0]["options"] if option != answer]
        rejected = wrong[rng.integers(len(wrong))]
        question = QUESTIONS[task].format(**values)
        asked.append({"id": f"q{len(asked)}", "task": task, "question": question, "answer": answer})
        asked[-1] |= {"rejected": rejected, "tries": tries, "evidence": evidence}

    if recipe.set == "vnbench":
        _ask_vnbench(rng, scene, recipe, ask)
        return asked
    whole = [recipe.whole]
    ask("domain", scene.domain, draw_tries(rng, scene.domain, DOMAINS), whole)
    if recipe.set == "easy":
        (thing,) = scene.objects
        ask("shape", thing.shape, draw_tries(rng, thing.shape, SHAPES), whole)
        ask("colour", thing.colour, draw_tries(rng, thing.colour, COLOURS), whole)
    else:
        _ask_hard(rng, scene, recipe, ask)
    _ask_flashes(rng, scene.flashes, recipe, ask)
    return asked


def _ask_hard(rng: np.random.Generator, scene: Scene, recipe: Recipe, ask) -> None:
    objects, whole = scene.objects, [recipe.whole]
    shapes, colours = [thing.shape for thing in objects], [thing.colour for thing in objects]
    named = rng.integers(len(objects), size=4)  # which object each question is about
    thing = objects[named[0]]
    ask("bind_colour", thing.colour, draw_tries(rng, thing.colour, COLOURS, colours), whole, shape=thing.shape)
    thing = objects[named[1]]
    ask("bind_shape", thing.shape, draw_tries(rng, thing.shape, SHAPES, shapes), whole, colour=thing.colour)
    counts = [str(n) for n in range(1, MAX_OBJECTS + 1)]
    ask("count", str(len(objects)), draw_tries(rng, str(len(objects)), counts), whole)
    thing, end = objects[named[2]], bool(rng.random() < 0.5)
    answer = thing.quadrant(-1 if end else 0, recipe.size)
    values = {"colour": thing.colour, "shape": thing.shape, "when": "end" if end else "start"}
    ask("where", answer, draw_tries(rng, answer, QUADRANTS), [_where_evidence(thing, recipe, end)], **values)
    thing = objects[named[3]]
    values = {"colour": thing.colour, "shape": thing.shape}
    ask("direction", thing.direction, draw_tries(rng, thing.direction, tuple(DIRECTIONS)), _ends(recipe), **values)


def _ask_flashes(rng: np.random.Generator, flashes: list[Flash], recipe: Recipe, ask) -> None:
    windows = [recipe.window(flash.frame) for flash in flashes]
    for i in rng.permutation(len(flashes)):  # ring and cross, in no telling order
        colour = flashes[i].colour
        ask("flash_colour", colour, draw_tries(rng, colour, COLOURS), [windows[i]], flash=flashes[i].shape)
    first, second = flashes
    ask("flash_order", first.colour, draw_tries(rng, first.colour, COLOURS, [second.colour]), windows)


def _ask_vnbench(rng: np.random.Generator, scene: Scene, recipe: Recipe, ask) -> None:
    needles, task = scene.needles, scene.task
    group, style = task.split("_")
    evidence = [recipe.window(needle.first, needle.last) for needle in needles]
    words = [needle.word or needle.shape for needle in needles]
    if group == "cnt":
        most = min(MAX_COUNT, len(recipe.shown))
        values = {"shape": needles[0].shape} if task == "cnt_edit2" else {}
        answer, options = str(len(needles)), [str(n) for n in range(1, most + 1)]
        # Who has missed something counts too few: the whole clip must be seen, and every needle.
        ask(task, answer, draw_tries(rng, answer, options), [recipe.whole, *evidence], **values)
    elif group == "ord":
        orders = [" ".join(order) for order in permutations(words)]
        ask(task, orders[0], draw_tries(rng, orders[0], orders), evidence)
    elif style == "edit1":
        ask(task, words[0], draw_tries(rng, words[0], WORDS), evidence)
    else:
        answer = f"{needles[0].colour} {needles[0].shape}"
        ask(task, answer, draw_tries(rng, answer, [f"{c} {s}" for c in COLOURS for s in SHAPES]), evidence)


def key_questions(rng: np.random.Generator, scene: Scene, recipe: Recipe, conversation: bool) -> list[dict[str, Any]]:
    """Which colour each flash of the set "keys" had.

    conversation: one entry of ``recipe.turns`` exchanges, each about a flash drawn from all of them, so that what was
    asked before says nothing; otherwise one question for each flash, in no telling order.
    """
    if not conversation:
        return [
            _about_key(rng, scene.flashes[i], recipe) | {"id": f"q{place}"}
            for place, i in enumerate(rng.permutation(len(scene.flashes)))
        ]
    asked = [scene.flashes[i] for i in rng.integers(len(scene.flashes), size=recipe.turns)]
    messages = []
    for flash in asked:
        messages.append({"role": "user", "content": _key_question(rng, flash, recipe)})
        messages.append({"role": "assistant", "content": flash.colour})
    evidence = [recipe.window(frame) for frame in sorted({flash.frame for flash in asked})]
    return [{"id": "q0", "task": "keys", "messages": messages, "evidence": evidence}]


def key_templates(wording: str) -> list[str]:
    """The templates of a wording; "both": all."""
    return list(KEYS.values()) if wording == "both" else [KEYS[wording]]


def _about_key(rng: np.random.Generator, flash: Flash, recipe: Recipe) -> dict[str, Any]:
    tries = draw_tries(rng, flash.colour, COLOURS)
    wrong = [option for option in tries[0]["options"] if option != flash.colour]
    asked = {"task": "keys", "question": _key_question(rng, flash, recipe), "answer": flash.colour, "tries": tries}
    return asked | {"rejected": wrong[rng.integers(len(wrong))], "evidence": [recipe.window(flash.frame)]}


def _key_question(rng: np.random.Generator, flash: Flash, recipe: Recipe) -> str:
    which = float(rng.random())  # drawn whatever the wording, so that clips of every wording ask about the same flashes
    worded = key_templates(recipe.wording)
    return worded[int(which * len(worded))].format(shape=flash.shape)


def draw_tries(rng: np.random.Generator, answer: str, values: Sequence[str], near: Sequence[str] = ()) -> list[dict]:
    """Four tries of four options. The right one stands in each place once, so a habit of place scores 25 % exactly.

    The wrong ones are drawn again in each try, uniformly, ``near`` ones (which occur in the clip) before others.
    """
    close = [value for value in near if value != answer]
    others = [value for value in values if value != answer and value not in close]
    tries = []
    for gold in rng.permutation(TRIES).tolist():
        wrong = [close[i] for i in rng.permutation(len(close)).tolist()[:3]]
        wrong += [others[i] for i in rng.permutation(len(others)).tolist()[: 3 - len(wrong)]]
        options = [wrong[i] for i in rng.permutation(3).tolist()]
        options.insert(gold, answer)
        tries.append({"options": options, "gold": gold})
    return tries


# ------------------------------------------------------------------------------------------------------------- chats


def _all_chats() -> list[tuple[str, str]]:
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    made = [(f"what comes after {a} ?", b) for a, b in pairwise(numbers)]
    made += [(f"what comes before {b} ?", a) for a, b in pairwise(numbers)]
    made += [(f"what is {a} and {b} ?", str(a + b)) for a in range(1, 4) for b in range(1, 4)]
    mixed = {("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple"}
    mixed |= {("red", "white"): "pink", ("black", "white"): "grey"}
    for (a, b), colour in mixed.items():
        made += [(f"which color mixes from {a} and {b} ?", colour), (f"which color mixes from {b} and {a} ?", colour)]
    opposites = {"left": "right", "up": "down", "top": "bottom", "first": "last", "start": "end"}
    for a, b in opposites.items():
        made += [(f"what is the opposite of {a} ?", b), (f"what is the opposite of {b} ?", a)]
    sides = {"triangle": "three", "square": "four", "diamond": "four"}
    made += [(f"how many sides does a {shape} have ?", number) for shape, number in sides.items()]
    made += [(f"say {word} .", word) for word in (*SHAPES, *COLOURS, *QUADRANTS, *DOMAINS)]
    return made


CHATS = _all_chats()


def chat(rng: np.random.Generator) -> list[dict[str, str]]:
    """One exchange without a video, drawn uniformly from ``CHATS``."""
    question, answer = CHATS[rng.integers(len(CHATS))]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
