"""Free text and names on the command line arrive as they were typed; everything else is Hydra's language."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hvlm.config.check import room_class
from hvlm.config.compose import CONF, compose
from hvlm.config.rooms import ROOMS
from hvlm.config.schema import parameters
from hvlm.config.settings import ROOM_TEXTS
from hvlm.config.words import as_given, lists_of_texts, quoted, text_of, texts
from hvlm.errors import UserError

TYPED = [
    "what's the colour (of the ring), é = 1 ?",
    'he said "now", then left',
    "a, b",
    "[a]",
    "{a: 1}",
    "12e4567",
    "2024_01_15",
    "1e3",
    "true",
    "nan",
    "0x10",
    "ends with a backslash \\",
    "\\'",
    "two\nlines",
    "choice(a,b)",
    "日本語?",
    "(",
    "'half",
    " spaces around ",
    "~",
    "a # b",
]


@pytest.mark.fault(100)
@pytest.mark.parametrize("text", TYPED)
def test_a_question_and_a_name_are_what_was_typed(text: str) -> None:
    cfg = compose([f"ask.question={text}", f"run={text}", f"logger.group={text}", f"language.revision={text}"])
    assert cfg["ask"]["question"] == cfg["run"] == cfg["logger"]["group"] == cfg["language"]["revision"] == text


@pytest.mark.fault(100)
@pytest.mark.parametrize("text", ["costs ${5}", r"a \${b}", "${oc.env:HOME}", r"\\${x}"])
def test_a_question_holds_no_interpolation(text: str) -> None:
    assert compose([f"ask.question={text}"])["ask"]["question"] == text


@pytest.mark.parametrize("text", TYPED)
def test_quoting_twice_is_quoting_once(text: str) -> None:
    once = as_given(f"run={text}")
    assert as_given(once) == once and as_given(once, sweep=True) == once and text_of(once) == text


def test_what_keeps_its_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVLM_TEST_NAME", "from outside")
    assert compose(["run=null"])["run"] is None
    assert compose(["run='in quotes'"])["run"] == compose(['run="in quotes"'])["run"] == "in quotes"
    assert compose(["run=${oc.env:HVLM_TEST_NAME}"])["run"] == "from outside"
    assert compose(["run=seed-${seed}"])["run"] == "seed-1"
    assert compose(["logger.tags=[a b,2024_01_15,é]"])["logger"]["tags"] == ["a b", "2024_01_15", "é"]
    assert compose(["dataset=shards", "dataset.path=[a,b]"])["dataset"]["path"] == ["a", "b"]
    assert compose(["dataset=shards", "dataset.path=a, b"])["dataset"]["path"] == "a, b"
    assert as_given("stage.trainable={vision:0}") == "stage.trainable={vision:0}"
    assert as_given("hydra.run.dir=a=b") == "hydra.run.dir=a=b"


def test_names_may_be_swept_and_sentences_may_not() -> None:
    assert as_given("init_from=runs/a,12e4567", sweep=True) == "init_from='runs/a','12e4567'"
    assert as_given("init_from=choice(a,b)", sweep=True) == "init_from=choice(a,b)"
    assert as_given("ask.question=a, b", sweep=True) == "ask.question='a, b'"
    assert as_given("seed=1,2", sweep=True) == "seed=1,2"


@pytest.mark.fault(100)
@pytest.mark.parametrize(
    "override, words",
    [
        ("stage.steps=(3", "stage.steps=(3: expected int, found str '(3'"),
        ("connector=me(an", "connector=me(an: no such option; did you mean 'mean'?"),
        ("order=é", "order=é: expected one of"),
        ("stage.trainable={vision:0", "expected a map {name: float"),
    ],
)
def test_what_hydra_cannot_read_is_refused_by_the_type(override: str, words: str) -> None:
    with pytest.raises(UserError) as e:
        compose([override])
    assert words in str(e.value) and "\n" not in str(e.value)


def test_every_text_of_a_room_is_known_to_be_text() -> None:
    """The table in settings.py is that of the rooms' constructors."""
    found: dict[str, set[str]] = {"one": set(), "list": set(), "either": set()}
    for group in ROOMS:
        for path in sorted((CONF / group).glob("*.yaml")):
            for name, (annotation, _) in parameters(room_class(group, OmegaConf.load(path))).items():
                members = set(typing.get_args(annotation)) if isinstance(annotation, types.UnionType) else {annotation}
                members = {list[str] if member == Sequence[str] else member for member in members}
                if name in ROOMS[group] or not ({str, list[str]} & members):
                    continue
                both = {str, list[str]} <= members
                found["either" if both else "list" if list[str] in members else "one"].add(f"{group}.{name}")
    assert found == {name: set(keys) for name, keys in ROOM_TEXTS.items()}


def test_the_keys_beside_the_rooms_that_hold_text() -> None:
    assert {"run", "out", "init_from", "checkpoint", "predictions", "ask.question", "ask.video"} <= texts()
    assert not {"order", "seed", "task", "trainer.devices", "logger.name"} & texts()
    assert "logger.tags" in lists_of_texts()


def test_quoted_is_read_back(tmp_path: Path) -> None:
    assert text_of(f"run={quoted(str(tmp_path))}") == str(tmp_path)
