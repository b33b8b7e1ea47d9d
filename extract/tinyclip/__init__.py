"""tinyclip, the CLIP that ships with the package: `model/` is an open_clip local-dir model."""
