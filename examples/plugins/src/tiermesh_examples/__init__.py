"""Plugins for training to copy from, one of each kind."""
