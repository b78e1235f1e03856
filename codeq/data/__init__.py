"""Data sets that lie in memory as uint8 tensors and augment whole batches on their device."""

from codeq.data.dataset import Augmentation, Dataset, Split
from codeq.data.sources import DATASETS, known_num_classes, load_dataset

__all__ = ["DATASETS", "load_dataset", "known_num_classes", "Dataset", "Split", "Augmentation"]
