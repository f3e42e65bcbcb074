"""Puts this folder on the import path, so that tests share what lies in it."""
