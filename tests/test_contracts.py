"""Every variant of every room against its contract (``hvlm/contracts/`` and the rooms' docstrings).

The folders are globbed: a new variant is tested here the moment its YAML exists. What is checked stands in
``hvlm/checks``, which ``hvlm check`` runs on packages of others, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from _tiny import ROOT, Case, Variant, cases, variants

from hvlm.checks import contract, decoding, heads, models, rooms
from hvlm.config.rooms import ROOMS
from hvlm.contracts import CONTRACTS
from hvlm.functional import last_true

CASES = [pytest.param(case, id=case.id) for case in cases()]


# ---------------------------------------------------------------------------------------------------- what a room is

EVERY = [pytest.param(variant, id=f"{group}/{variant.id}") for group in ROOMS for variant in variants(group)]


def test_the_contracts_cover_every_group() -> None:
    assert list(CONTRACTS) == list(ROOMS) and all(base.group == group for group, base in CONTRACTS.items())


@pytest.mark.parametrize("variant", EVERY)
def test_every_variant_has_what_its_contract_says(variant: Variant) -> None:
    contract.it_has_what_its_contract_says(variant)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases()])
def test_every_built_room_has_the_attributes_of_its_contract(case: Case) -> None:
    models.rooms_have_the_attributes_of_their_contracts(case)


def test_nobody_asks_rooms_what_they_have_by_its_name() -> None:
    """What a room may leave out has a value in its contract."""
    asked = [
        f"{path.name}: {line.strip()}"
        for folder in (".", "stage", "training", "evaluation", "attention", "connector", "merger")
        for path in sorted((ROOT / "hvlm" / folder).glob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(
            r"(has|get)attr\((self\.)?(\w+\.)*(model|connector|merger|attention|stage|head|adapter|layer)\b", line
        )
    ]
    assert not asked


# ---------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_masks(case: Case) -> None:
    models.shapes_and_masks(case)


@pytest.mark.parametrize("case", CASES)
def test_padding_changes_nothing(case: Case) -> None:
    models.padding_changes_nothing(case)


@pytest.mark.parametrize("case", CASES)
def test_questions_that_share_a_clip_are_as_if_asked_alone(case: Case) -> None:
    models.questions_that_share_a_clip_are_as_if_asked_alone(case)


@pytest.mark.parametrize("case", CASES)
def test_clips_may_come_in_any_order(case: Case) -> None:
    models.clips_may_come_in_any_order(case)


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_parameter(case: Case) -> None:
    models.gradients_reach_every_parameter(case)


@pytest.mark.parametrize("case", CASES)
def test_text_alone_is_the_language_model_alone(case: Case) -> None:
    models.text_alone_is_the_language_model_alone(case)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_autocast_is_finite(case: Case) -> None:
    models.bfloat16_autocast_is_finite(case)


@pytest.mark.parametrize("case", CASES)
def test_state_travels_through_a_file(case: Case) -> None:
    models.state_travels_through_a_file(case)


@pytest.mark.parametrize("case", CASES)
def test_a_rehearsal_needs_no_storage(case: Case) -> None:
    models.a_rehearsal_needs_no_storage(case)


# ---------------------------------------------------------------------------------------------------- single rooms


def params(group: str) -> list:
    return [pytest.param(variant, id=variant.id) for variant in variants(group)]


@pytest.mark.parametrize("variant", params("merger"))
def test_merger(variant: Variant) -> None:
    rooms.merger(variant)


@pytest.mark.parametrize("variant", params("attention"))
def test_attention(variant: Variant) -> None:
    rooms.attention(variant)
    assert "readout" in variant.settings or variant.name == "none"


@pytest.mark.parametrize("variant", params("fusion"))
def test_fusion(variant: Variant) -> None:
    rooms.fusion(variant)


@pytest.mark.parametrize("variant", params("adapter"))
def test_adapter_keeps_the_base_weights_and_their_names(variant: Variant) -> None:
    rooms.adapter(variant)


@pytest.mark.parametrize("check", [pytest.param(check, id=check.__name__) for check in heads.CHECKS])
@pytest.mark.parametrize("variant", params("head"))
def test_head(variant: Variant, check: Callable[[Variant], None]) -> None:
    check(variant)


@pytest.mark.parametrize("variant", params("head"))
def test_a_head_that_writes_gives_the_language_models_logits(variant: Variant) -> None:
    vlm = models.shared_model(Case("question_first", (variant,)))
    if vlm.head.writes:
        h = torch.randn(5, vlm.language.dim)
        torch.testing.assert_close(vlm.head.logits(h), h @ vlm.language.model.lm_head.weight.T)


@pytest.mark.parametrize("variant", [v for v in params("stage") if v.id not in ("vision", "dpo")])
def test_stage(variant: Variant) -> None:
    rooms.stage(variant)


# ---------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("order", ["question_first", "video_first"])
@pytest.mark.parametrize("variant", params("kvcache"))
def test_decoding_with_a_cache_is_argmax_over_the_whole_sequence(variant: Variant, order: str) -> None:
    decoding.decoding_with_a_cache_is_argmax_over_the_whole_sequence(variant, order)


@pytest.mark.parametrize("variant", params("kvcache"))
def test_bytes_of_a_cache_are_what_is_allocated(variant: Variant) -> None:
    decoding.bytes_of_a_cache_are_what_is_allocated(variant)


def test_last_true() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert last_true(mask).tolist() == [1, 2, 3]
