"""Attacks that only evaluation makes."""
