"""LightningDataModules: Boolean codes, CLIP embeddings, images, glyphs."""
