"""The frozen text tower as a tree, and the words it is given."""
