"""The groups of rooms: the one list of them, in the order of the corridor. Imports nothing, for everybody needs it."""

from __future__ import annotations

# Group -> keywords of its rooms' constructors that assembly passes because they follow from the neighbours. Each room
# gets those that it names; every other argument is a setting and stands in the room's YAML. What a room of each group
# must have and may have is in hvlm/contracts/.
ROOMS: dict[str, frozenset[str]] = {
    "stage": frozenset({"model", "labels"}),
    "vision": frozenset({"weights", "source_config"}),
    "merger": frozenset({"needs_frames"}),
    "connector": frozenset({"dim", "text_dim", "query_dim", "grid"}),
    "attention": frozenset({"dim", "num_heads"}),
    "fusion": frozenset({"dim", "num_heads", "vision_dim"}),
    "language": frozenset({"chat", "weights", "source_config"}),
    "adapter": frozenset({"name", "weights", "source_config"}),
    "kvcache": frozenset({"num_layers", "num_kv_heads", "head_dim"}),
    "head": frozenset({"text_dim", "logits"}),
    "dataset": frozenset(),
    "benchmark": frozenset(),
}
# Those that make a model which answers.
OF_A_MODEL = tuple(room for room in ROOMS if room not in ("stage", "dataset", "benchmark"))
