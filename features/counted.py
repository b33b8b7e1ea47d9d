"""Numbers with their nouns, for people."""


def counted(number: int, noun: str) -> str:
    """A number and what it counts, plural unless it is one: "1 video", "1,240 videos"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
