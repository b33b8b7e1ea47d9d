"""`shapes`, the built-in data set: short clips of moving shapes, rendered and encoded here."""
