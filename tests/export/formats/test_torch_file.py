"""`pytorch_model*.bin`: tensors are read as from safetensors, and code never runs."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgepack.errors import CheckpointError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.model import read_tensor


class Harmful:
    """A pickle that would touch a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path, books):
    shutil.copy(books / "config.json", tmp_path)
    return tmp_path


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
def test_a_bin_gives_the_same_rows_as_safetensors(folder, books, zip_format):
    tensors = load_file(books / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    ours, reference = open_checkpoint(folder).tensors, open_checkpoint(books).tensors
    assert dict(ours.specs) == dict(reference.specs)
    for name in list(tensors)[:8]:
        np.testing.assert_array_equal(read_tensor(ours, name), read_tensor(reference, name))


def test_shards_with_an_index_are_read(folder, books):
    tensors = load_file(books / "model.safetensors")
    names = list(tensors)
    parts = {"pytorch_model-1.bin": names[:5], "pytorch_model-2.bin": names[5:]}
    for file, part in parts.items():
        torch.save({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    source = open_checkpoint(folder).tensors
    assert set(source.specs) == set(names)
    np.testing.assert_array_equal(read_tensor(source, names[7]), tensors[names[7]].float().numpy())


def test_a_pickle_with_code_is_refused_and_never_runs(folder):
    for write in (torch.save, lambda c, path: path.write_bytes(pickle.dumps(c))):
        write({"a": Harmful(folder / "touched")}, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(folder)
        assert "\n" not in str(error.value)
        assert not (folder / "touched").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(50), b"\x80\x02.", b"not a pickle"])
def test_a_file_that_is_no_pickle_is_refused(folder, content):
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", [[1], {"a": 1}, {1: torch.ones(2)}, {"a": torch.ones(2, 2).to_sparse()}])
def test_anything_but_named_dense_tensors_is_refused(folder, content):
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="tensors"):
        open_checkpoint(folder)
