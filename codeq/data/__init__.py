"""Data sets: uint8 tensors in memory with augmentation of whole batches, or image files read by worker processes."""

from codeq.data.augmentation import Augmentation
from codeq.data.base import BaseDataset
from codeq.data.dataset import Dataset, Split
from codeq.data.own import register_dataset
from codeq.data.sources import DATASETS, known_num_classes, load_dataset
from codeq.data.streamed import FileSplit, StreamedDataset
from codeq.data.validation import hold_out, training_part

__all__ = [
    "DATASETS",
    "load_dataset",
    "register_dataset",
    "hold_out",
    "training_part",
    "known_num_classes",
    "BaseDataset",
    "Dataset",
    "Split",
    "Augmentation",
    "StreamedDataset",
    "FileSplit",
]
