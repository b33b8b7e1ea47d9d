"""Stage two: a feature store in, a video classifier out; the frozen text tower runs live."""
