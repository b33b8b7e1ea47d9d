"""Exact evaluation: who answers, which videos are asked, what is counted."""
