"""Stage one: videos and a frozen CLIP in, a feature store out."""
