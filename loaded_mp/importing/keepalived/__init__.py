"""Configuration of keepalived."""
