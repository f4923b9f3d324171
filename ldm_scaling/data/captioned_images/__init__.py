"""Captioned images as people have them, made into one prepared data set.

A source (webdataset tars, parquet beside downloaded files, a COCO folder) is a list of shards;
a shard streams entries; rules say which are kept, and why others are not; a TFDS builder writes
what is kept as array_record with Apache Beam, and a report of the rest. `prepare` does it all.
Beam, TFDS and TensorFlow are imported when a set is prepared; reading one needs none of this.
"""

from ldm_scaling.data.captioned_images.entries import Entry, Problem, Shard
from ldm_scaling.data.captioned_images.finding import KINDS, find_shards
from ldm_scaling.data.captioned_images.preparing import prepare
from ldm_scaling.data.captioned_images.report import Report
from ldm_scaling.data.captioned_images.rules import Rules

__all__ = [
    "KINDS",
    "Entry",
    "Problem",
    "Report",
    "Rules",
    "Shard",
    "find_shards",
    "prepare",
]
