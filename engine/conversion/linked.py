"""Gives the ranks' files of a converted checkpoint to a directory with another config or tokenizer. No torch.

So a model that is built in memory, or on the meta device, starts from a descriptor.
"""

from pathlib import Path

from distllm.engine.conversion.descriptor import DESCRIPTOR_NAME, Descriptor, descriptor_text, rank_file_names
from distllm.engine.conversion.manifest import Manifest, check_sizes, read_manifest, write_manifest


def link_converted(descriptor: Descriptor, to: Path) -> None:
    """Make `to`, which has a config.json, a converted checkpoint: links to the files, a descriptor, a manifest.

    Raises CheckpointError where a file is not as its manifest says.
    """
    manifest = read_manifest(descriptor.directory)
    check_sizes(descriptor.directory, manifest, descriptor.files)
    names = rank_file_names(descriptor.tp_size)
    for name, path in zip(names, descriptor.paths, strict=True):
        (to / name).symlink_to(path.resolve())
    (to / DESCRIPTOR_NAME).write_text(descriptor_text(descriptor.tp_size, to), encoding="utf-8")
    records = {name: manifest.files[file] for name, file in zip(names, descriptor.files, strict=True)}
    write_manifest(to, Manifest(manifest.written_by, manifest.tp_size, records))
