"""Headers, checksums and address rewriting, in place on packet bytes. No I/O, no clock."""
