"""LightningDataModules: Boolean codes, CLIP embeddings, images, glyphs."""

from fpe_lightning.extras import extra

with extra("template", "`fpe_lightning.data`"):
    from fpe_lightning.data.arrays import ArrayDataModule
    from fpe_lightning.data.boolean import DNFTask, dnf_task
    from fpe_lightning.data.boolean_data import BooleanDataModule
    from fpe_lightning.data.embeddings import EmbeddingDataModule
    from fpe_lightning.data.glyphs import GlyphDataset
    from fpe_lightning.data.image_folder import ImageFolderDataModule
    from fpe_lightning.data.images import ImageDataModule
    from fpe_lightning.data.loader import BatchLoader
    from fpe_lightning.data.sources import ImageSplits, load_images, register_dataset
    from fpe_lightning.data.table import TableDataModule

__all__ = [
    "ArrayDataModule",
    "BatchLoader",
    "BooleanDataModule",
    "DNFTask",
    "EmbeddingDataModule",
    "GlyphDataset",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageSplits",
    "TableDataModule",
    "dnf_task",
    "load_images",
    "register_dataset",
]
