"""RLAIF-V (Yu et al. 2024), on the hub as openbmb/RLAIF-V-Dataset: 83,132 pairs of answers about pictures.

RLAIF-V-Dataset_000.parquet …      ds_name, image {bytes, path}, question, chosen, rejected, origin_dataset,
    origin_split (JSON as text: which model answered, what kind of question), idx (text), image_path
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hvlm.data.sample_fields import as_text
from hvlm.prepare.corpora import At

TITLE = "RLAIF-V"
FILES = (("*.parquet",),)
COLUMNS = ("image", "question", "chosen", "rejected")
ROLES = ("video", "question", "answer", "rejected", "id", "domain", "task")
PROMPT = None
OPTIONS = ()


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    texts = {name: as_text(row[name], name) for name in ("question", "chosen", "rejected")}
    name = row.get("idx")
    yield {
        "video": row["image"], "question": texts["question"], "answer": texts["chosen"], "rejected": texts["rejected"],
        "id": None if name is None else str(name), "domain": "rlaif_v",
        "task": str(row.get("origin_dataset") or "pair"),
    }  # fmt: skip
