"""A decoder that takes its time; the decoding pool finds it by name."""

import time

from bieff.extract.decode.reader import Choose, Decoded, Preference, decode_video


def slow(path: str, choose: Choose, *, decoder: Preference | None = None) -> Decoded:
    """Decode after a third of a second."""
    time.sleep(0.3)
    return decode_video(path, choose, decoder=decoder)
