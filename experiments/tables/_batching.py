"""Tables of what batches by frames and tokens, packing and logits in parts save, from experiments/batching."""

from __future__ import annotations

from experiments.tables._records import one, read, table

FILE = "batching/results.json"


def padding() -> list[str]:
    rows = []
    plain = one(FILE, question="padding", variant="plain", metric="clips_a_cpu_s")["value"]
    for variant in dict.fromkeys(r["variant"] for r in read(FILE) if r["question"] == "padding"):
        found = {r["metric"]: r["value"] for r in read(FILE) if (r["question"], r["variant"]) == ("padding", variant)}
        shares = [f"{100 * found[m]:.0f}" if m in found else "" for m in ("padded_frames", "padded_tokens")]
        speed = found["clips_a_cpu_s"]
        rows.append([variant.replace("_packed", ", packed"), *shares, f"{speed:.1f}", f"{speed / plain:.2f}"])
    head = ["batches", "frames that are padding, %", "tokens that are padding, %", "clips / CPU s", "ratio"]
    return table(head, rows)


def logits() -> list[str]:
    rows = []
    for count in sorted({r["rows"] for r in read(FILE) if r["question"] == "logits"}):
        at = [r for r in read(FILE) if r["question"] == "logits" and r["rows"] == count]
        plain = {r["metric"]: r["value"] for r in at if r["variant"] == "plain"}
        for variant in dict.fromkeys(r["variant"] for r in at):
            found = {r["metric"]: r["value"] for r in at if r["variant"] == variant}
            name, _, checkpoints = variant.partition("_")
            way = "plain loop" if name == "plain" else f"`head.logits_mb={name}`"
            rows.append([
                str(count), way + (", checkpoints" if checkpoints else ""), f"{found['step_cpu_s']:.1f}",
                f"{found['peak_mb']:,.0f}", f"{found['peak_mb'] / plain['peak_mb']:.2f}",
                f"{found['whole_mb'] / plain['whole_mb']:.2f}",
            ])  # fmt: skip
    head = ["captions", "way", "CPU s a step", "peak MB beside weights", "ratio", "with weights, ratio"]
    return table(head, rows)


TABLES = {"batching/padding": padding, "batching/logits": logits}
