"""Fuzz: what is typed: overrides of the configuration, over a stored one, and words of ``hvlm prepare``."""

from __future__ import annotations

import functools
from typing import Any

from _fuzz import folder, target
from _fuzz_files import json_files
from _fuzz_values import texts
from _tiny import CONF
from hypothesis import strategies as st

from hvlm.config.check import check
from hvlm.config.compose import compose
from hvlm.config.overlay import on_top, overlay
from hvlm.config.words import as_given, key_of, text_of
from hvlm.io.foreign import said, yaml_of
from hvlm.prepare.settings import read

GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir())
CHOICES = [f"{p.parent.name}={p.stem}" for p in sorted(CONF.glob("*/*.yaml"))]
KEYS = (
    "run",
    "seed",
    "out",
    "checkpoint",
    "init_from",
    "processes",
    "resume",
    "packages",
    "config_dir",
    "chain",
    "stage.steps",
    "stage.batch_size",
    "stage.trainable",
    "stage.trainable.language",
    "stage.lr",
    "trainer.precision",
    "trainer.num_workers",
    "dataset.num_frames",
    "dataset.path",
    "merger.keep",
    "connector._target_",
    "benchmark.tasks",
    "benchmark.limit",
    "ask.question",
    "ask.video",
    "domain.prompt",
    "language.system",
    "sweep",
    "launcher",
    "hydra.run.dir",
    "hydra",
    "logger",
    "callback.x",
    "_target_",
)
keys = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(GROUPS), texts, st.tuples(st.sampled_from(GROUPS), texts).map(".".join)
)
values = st.one_of(
    texts,
    st.sampled_from(
        (
            "1",
            "0.5",
            "[1,2]",
            "{a:1}",
            "{a:{b:c}}",
            "1,2",
            "null",
            "???",
            "choice(1,2)",
            "range(0,3)",
            "'a'",
            "${seed}",
            "${nope}",
            "${seed:1}",
            "[",
            "{",
            "\\",
            "$",
            "@",
            "-1",
            "1e400",
            "inf",
            "nan",
            "true",
            "!!x",
        )
    ),
    st.integers().map(str),
    st.text(max_size=8),
)
word = st.one_of(
    st.tuples(
        st.sampled_from(("", "", "", "+", "++", "~", "-", "--")),
        keys,
        st.sampled_from(("=", "=", "=", "", "==")),
        values,
    ).map("".join),
    st.sampled_from(CHOICES),
    texts,
)
words = st.lists(word, min_size=1, max_size=3)
TIME = 0.3  # seconds that composing takes


@target(ci=10, overrides=words)
def test_overrides(overrides: list[str]) -> None:
    compose(overrides)


@target(ci=60, override=word, sweep=st.booleans())
def test_words(override: str, sweep: bool) -> None:
    as_given(override, sweep)
    key_of(override)
    if "=" in override:
        text_of(override)
        said(override.partition("=")[2])


@functools.cache
def stored() -> dict[str, Any]:
    return compose(["run=tiny"])


@target(ci=5, overrides=words)
def test_overlay(overrides: list[str]) -> None:
    on_top(overrides)
    overlay(stored(), overrides)


@target(
    ci=15,
    data=json_files(stored()),
    head=st.sampled_from(("", "", "- ", "a: &a [*a]\n", "!!python/object:os.system ", "%YAML 9\n")),
)
def test_stored_configuration(data: bytes, head: str) -> None:
    with folder() as place:
        (place / "config.yaml").write_bytes(head.encode() + data)
        value = yaml_of(place / "config.yaml")
    if isinstance(value, dict):
        overlay(value, [], str(place))
        check(value)


prepare_keys = st.one_of(
    st.sampled_from(
        (
            "src",
            "out",
            "split",
            "video",
            "options",
            "answers",
            "max_bad",
            "shard_mb",
            "seed",
            "workers",
            "dry_run",
            "frames",
            "decode_timeout",
            "corpus",
            "tokenizer",
            "moments",
            "id",
            "prompt",
        )
    ),
    texts,
)
prepare_words = st.lists(
    st.one_of(st.tuples(prepare_keys, values).map("=".join), texts, st.just("out=x"), st.just("split=[0.5,0.5,.nan]")),
    max_size=5,
)


@target(ci=40, given_words=prepare_words)
def test_prepare_words(given_words: list[str]) -> None:
    read(given_words)
