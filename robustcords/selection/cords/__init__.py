"""Strategies of CORDS."""
