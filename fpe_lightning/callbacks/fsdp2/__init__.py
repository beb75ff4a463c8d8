"""Splits while FSDP2 shards the parameters: asked for by name, and only where it was tested."""
