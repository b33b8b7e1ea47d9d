"""What needs both stages: the demo, and everything else that goes from a video to an answer."""
