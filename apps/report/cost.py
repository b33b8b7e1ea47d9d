"""What a run cost, in words."""

from bieff.features.store import FeatureStore
from bieff.train.fit.cost import stage_one
from bieff.train.runs.run import Run


def cost(run: Run, store: FeatureStore | None) -> list[tuple[str, str]]:
    """What both stages took, and what the model weighs, line by line."""
    record = run.record
    lines = []
    if store is not None:
        lines.append(("Stage one, extraction", _stage_one(store)))
    seconds, steps = float(record["seconds"]), int(record["steps"])
    lines.append(
        (
            "Stage two, training",
            f"{duration(seconds)} for {steps:,} steps of {record['config']['batch_size']} "
            f"videos on {record['device']}, {record['precision']}",
        )
    )
    if record.get("peak_memory_bytes"):
        lines.append(("Peak memory", f"{record['peak_memory_bytes'] / 1e9:.2f} GB"))
    batch = (record.get("cost") or {}).get("batch") or {}
    if flops := (batch.get("flops_a_video") or {}).get("total"):
        lines.append(("Arithmetic of a training video", f"{flops / 1e9:,.2f} GFLOPs"))
    counts = dict(record["parameters"])
    total = counts.pop("total")
    parts = ", ".join(f"{name} {_count(n)}" for name, n in counts.items() if n)
    lines.append(("Tunable parameters", f"{_count(total)} ({parts or 'none'})"))
    whole = int(record["parameters_with_clip"])
    lines.append(("With frozen CLIP, both towers", _count(whole)))
    lines.append(("Features", f"{record['features']['bytes'] / 1e6:,.1f} MB in training"))
    return lines


def _stage_one(store: FeatureStore) -> str:
    """Seconds of all shards, as their markers say."""
    parts = stage_one(store).values()
    busy, waiting = (
        sum(float(part["seconds"].get(name, 0)) for part in parts)
        for name in ("cutting and encoding", "waiting for decoders")
    )
    videos = sum(int(part["videos"]) for part in parts)
    return (
        f"{duration(waiting + busy)} for {videos:,} videos: {duration(busy)} cutting and "
        f"encoding, {duration(waiting)} waiting for decoders"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 120 else f"{hours:.1f} h"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"
