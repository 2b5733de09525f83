"""The processes of a run: start, communication, progress, termination."""
