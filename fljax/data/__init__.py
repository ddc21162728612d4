"""Data of the clients: loaders of public formats, partitioners, and the packed arrays that training reads."""

from fljax.data.adapters import from_flwr, from_hf
from fljax.data.federated import Batch, Dataset, Examples, FederatedData, Shard
from fljax.data.partition import Partition
from fljax.data.registry import DATASETS, PARTITIONS, DatasetInfo, load_dataset
from fljax.data.sources import Source
from fljax.data.summary import PartitionSummary, plot_partition

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Batch",
    "Dataset",
    "DatasetInfo",
    "Examples",
    "FederatedData",
    "Partition",
    "PartitionSummary",
    "Shard",
    "Source",
    "from_flwr",
    "from_hf",
    "load_dataset",
    "plot_partition",
]
