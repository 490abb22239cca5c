"""Members of several runs or files, as one pool to combine."""
