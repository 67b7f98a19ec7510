"""Durations as people write them."""


def duration(seconds: float) -> str:
    """In its two largest units: "3 d 1 h", "2 h 5 min", "1 min 40 s", "8.2 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    counts = {"d": days, "h": hours, "min": minutes, "s": rest}
    parts = [f"{count} {unit}" for unit, count in counts.items()]
    largest = next((at for at, count in enumerate(counts.values()) if count), 3)
    return " ".join(parts[largest : largest + 2]) if largest < 3 else f"{seconds:.1f} s"
