"""What is changed on the host: planned first, recorded before it is done, taken back on stop."""
