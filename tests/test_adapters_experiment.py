"""``python -m experiments.adapters`` in small: every figure that its tables want is there."""

from __future__ import annotations

from experiments.adapters.__main__ import KINDS, measure
from experiments.tables import _adapters, _records
from hvlm.evaluation import results


def test_it_measures_what_the_tables_show(tmp_path, monkeypatch) -> None:
    records = measure(repeats=1, layers=2, rows=3, small=True)
    found = {(record["variant"], record["metric"]): record for record in records}
    assert {(kind, metric) for kind in KINDS for metric in ("step_ms", "forward_ms")} <= set(found)
    assert all(found[f"{kind}_merged", "logits_apart"]["value"] <= 1e-6 for kind in ("lora", "dora"))
    assert all(found[f"{kind}_merged", "logits_apart_float64"]["value"] <= 1e-6 for kind in ("lora", "dora"))
    assert found["dpo_adapter_off", "weights_mb"]["ratio"] <= 0.6
    assert found["lora", "step_ms"]["trained_percent"] < found["full", "step_ms"]["trained_percent"]
    (tmp_path / "adapters").mkdir()
    results.write(tmp_path / "adapters" / "speed.json", records)
    monkeypatch.setattr(_records, "HERE", tmp_path)
    _records.read.cache_clear()
    try:
        assert len(_adapters.speed()) == 2 + len(KINDS) + 1 and "0.5" in _adapters.lines()[0]
    finally:
        _records.read.cache_clear()
