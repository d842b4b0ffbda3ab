"""Make variants of one small model for the quality watch: a reference, and one that is broken.

    python -m benchmarks.quality_variants FOLDER

The package has this model at one quantization, Q4_K_M, which is the sound variant. Its weights are
taken back to 32 bits and quantized anew: to 8 bits (Q8_0) they are the reference, which so is as
near to the sound variant as rounding and kernels let it be. The broken one is quantized to 4 bits a
second time, by the simplest way (Q4_0), and in one of five hundred blocks of 32 weights the scale
has the wrong sign, as after a faulty conversion.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

sys.path.insert(0, str(Path(__file__).parents[1]))

from shunter.demo.llama_server import packaged_model

# Blocks whose scale gets the wrong sign, one in so many.
SPOILED_ONE_IN = 500
_MATRIX = 2
_BLOCK_BYTES = 18
_SKIPPED = ("GGUF.", "general.architecture", "general.file_type")


def make_variants(folder: Path) -> dict[str, Path]:
    """Return the file of each variant, made where it is missing.

    Args:
        folder: for the files, some 500 MB.
    """
    source = packaged_model(os.getpid())
    folder.mkdir(parents=True, exist_ok=True)
    made = {name: folder / f"gemma-3-270m-{name}.gguf" for name in ("q8", "broken")}
    for name, path in made.items():
        if not path.exists():
            half = path.with_suffix(".half")
            _write(source, half, name)
            half.replace(path)
    return made


def _write(source: Path, target: Path, name: str) -> None:
    """Write the model at another quantization."""
    kind = GGMLQuantizationType.Q8_0 if name == "q8" else GGMLQuantizationType.Q4_0
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for field, value, types in _fields(reader):
        writer.add_key_value(field, value, *types)
    random = np.random.default_rng(7)
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) < _MATRIX:
            writer.add_tensor(tensor.name, weights.astype(np.float32))
            continue
        # The embeddings, which are the output too, stay at 8 bits, as quantizers do.
        at = GGMLQuantizationType.Q8_0 if tensor.name.startswith("token_embd") else kind
        data = quantize(weights.astype(np.float32), at)
        if name == "broken" and at is kind:
            _spoil(data, random)
        writer.add_tensor(tensor.name, data, raw_dtype=at)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fields(reader: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yield name, value and types of what the file says of the model."""
    for field in reader.fields.values():
        if field.name.startswith(_SKIPPED):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        yield field.name, field.contents(), (kind,) if inner is None else (kind, inner)


def _spoil(data: "np.ndarray[Any, Any]", random: "np.random.Generator") -> None:
    """Turn the sign of the scale in some blocks of a matrix in Q4_0, a half and 16 bytes each."""
    blocks = data.reshape(-1, _BLOCK_BYTES)
    chosen = random.random(len(blocks)) < 1 / SPOILED_ONE_IN
    blocks[chosen, 1] ^= 0x80


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality_variants", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="where the variants are written")
    make_variants(parser.parse_args().folder)
