"""Alembic's scripts; `distillery migrate` runs them."""
