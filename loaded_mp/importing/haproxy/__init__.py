"""Configuration of HAProxy."""
