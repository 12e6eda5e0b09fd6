"""Reads annotations in two steps: one worker lists what to read, then all workers parse in parallel.

    list_files() -> file, file, ...  -> spread over the workers -> parse(file) -> (key, element), ...

Every reader uses this transform and provides the two functions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import apache_beam as beam

from pipelines.annotations import Element, assign_to_split

# Number of elements at the start of the pipeline. Dask's runner keeps as many partitions as its first collection has,
# so this number limits its parallelism. It exceeds the number of local workers.
SEEDS = 64


class ReadAnnotations(beam.PTransform):
    """Lists files in order on one worker and parses each of them on any worker.

    Beam pickles both functions.

    Args:
      list_files: returns the items to parse; each reader has its own type of item, for example one annotation file.
      parse: returns the elements of one item.
    """

    def __init__(self, list_files: Callable[[], Iterable[Any]], parse: Callable[[Any], Iterable[Element]]) -> None:
        super().__init__()
        self.list_files = list_files
        self.parse = parse

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Returns the elements, in no particular order."""
        return (
            begin
            | "Create seeds" >> beam.Create(range(SEEDS))
            | "Spread seeds" >> beam.Reshuffle()
            | "List files" >> beam.FlatMap(list_from_first_seed, self.list_files).with_output_types(Any)
            | "Spread files" >> beam.Reshuffle()
            | "Parse annotations" >> beam.FlatMap(self.parse).with_output_types(Element)
        )


def list_from_first_seed(seed: int, list_files: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Yields all files for seed 0 and nothing for the other seeds."""
    if seed == 0:
        yield from list_files()


def read_splits(readers: Sequence[ReadAnnotations]) -> ReadAnnotations:
    """Returns one transform that reads several splits, numbered in the given order.

    A single transform needs the same number of steps whatever the number of splits, and no step that merges branches.
    """
    if len(readers) == 1:
        return readers[0]
    return ReadAnnotations(
        partial(_list_splits, [reader.list_files for reader in readers]),
        partial(_parse_split, [reader.parse for reader in readers]),
    )


def _list_splits(list_files: Sequence[Callable[[], Iterable[Any]]]) -> Iterator[tuple[int, Any]]:
    for split, list_split in enumerate(list_files):
        for file in list_split():
            yield split, file


def _parse_split(parsers: Sequence[Callable[[Any], Iterable[Element]]], item: tuple[int, Any]) -> Iterator[Element]:
    split, file = item
    for element in parsers[split](file):
        yield assign_to_split(element, split)
