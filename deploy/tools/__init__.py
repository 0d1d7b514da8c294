"""Checks of what lies in deploy/: python -m deploy.tools.validate."""
