"""One command that measures this project on one GPU; see `__main__.py`."""
