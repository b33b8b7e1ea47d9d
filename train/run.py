"""The door to a run that docs/api.md keeps steady: open it, load its model, load its CLIP."""

from bieff.train.runs.run import clip_of, load_model, open_run

__all__ = ["clip_of", "load_model", "open_run"]
