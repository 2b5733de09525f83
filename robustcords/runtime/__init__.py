"""The processes of a run: how they start, meet, report and stop."""
