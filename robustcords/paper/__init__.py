"""The paper (Li et al. 2023, arXiv:2302.12366): its tables and figures as data, and the sizes to run their rows in."""
