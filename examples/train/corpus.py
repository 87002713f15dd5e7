"""Builds the training text from pinned Debian packages: download, unpack, one clean file a document.

All texts are in the public domain (each package's copyright file says so, or the work's age does);
`DOCUMENTS` names the package, the licence statement and the split of every document. Documents are
never divided between splits: what is held out is a whole novel that no training text contains.

    python corpus.py --out build/train/corpus

needs a Debian 12 system with `apt-get` and `dpkg` (root is not needed; nothing is installed).
"""

import argparse
import dataclasses
import gzip
import hashlib
import html
import json
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

# name → (version, sha256 of the .deb). A changed package stops the build instead of changing it.
PACKAGES = {
    "r-cran-janeaustenr": (
        "1.0.0-1",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    ),
    "r-cran-tokenizers": (
        "0.3.0-1",
        "6312f013ebfde5650235bfd7ba5c44d9e4cf9f2da9855337c9483fe778f0d8c7",
    ),
    "bible-kjv": (
        "4.38",
        "75a49c032a6efa9faa2beb4a9acb70974380122906329d0e100de36cc88ff02d",
    ),
    "bible-kjv-text": (
        "4.38",
        "d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a",
    ),
    "sword-text-web": (
        "426.0-1",
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
    ),
    "sword-comm-tdavid": (
        "2.1-1",
        "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f",
    ),
    "sword-comm-mhcc": (
        "2.0-1",
        "06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35",
    ),
    "jargon-text": (
        "4.4.7-4.1",
        "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
    ),
    "dict-devil": (
        "1.0-13.1",
        "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
    ),
}


@dataclasses.dataclass(frozen=True)
class Document:
    """One document of the corpus.

    Attributes:
        name: File stem of the cleaned text.
        title: What it is, for the model card.
        package: The Debian package that carries it.
        licence: Why it may be used.
        split: train, validation or test.
        weight: How often one epoch of training reads it.
        extract: Yields the paragraphs, given the folder of unpacked packages.
    """

    name: str
    title: str
    package: str
    licence: str
    split: str
    weight: int
    extract: Callable[[Path], Iterator[str]]


# ---------------------------------------------------------------------------------------------
# R data: a lazy-load database is a row of compressed, serialised objects.


def read_r_strings(data: bytes) -> list[str]:
    """Returns every character string of one serialised R object (XDR format), in order.

    The texts are vectors of lines, so walking the structure and keeping the strings is enough;
    attribute names and the like are strings as well, and are dropped by their vector's length.
    """
    if data[:2] != b"X\n":
        raise ValueError("not an R object in XDR format")
    position = 2
    best: list[str] = []

    def integer() -> int:
        nonlocal position
        position += 4
        return struct.unpack(">i", data[position - 4 : position])[0]

    version = integer()
    integer(), integer()  # the writer's and the oldest reader's version of R
    if version == 3:
        length = integer()
        position += length  # the native encoding's name

    def item() -> object:
        nonlocal position, best
        flags = integer()
        kind, has_attributes, has_tag = flags & 255, flags & 512, flags & 1024
        if kind in (254, 253, 242, 241, 251):  # nil and the fixed environments
            return None
        if kind == 255:  # a reference to an earlier symbol
            return None if flags >> 8 else integer()
        if kind == 1:  # symbol
            return item()
        if kind in (2, 6):  # pair list
            if has_attributes:
                item()
            if has_tag:
                item()
            item()
            return item()
        if kind == 9:  # one string
            length = integer()
            if length < 0:
                return ""
            position += length
            return data[position - length : position].decode("utf-8", "replace")
        if kind == 238:  # a compact form: class, state, attributes
            item(), item(), item()
            return None
        if kind in (10, 13, 14, 16, 19, 20):
            length = integer()
            if kind in (16, 19, 20):
                values = [item() for _ in range(length)]
                if kind == 16 and sum(map(len, values)) > sum(map(len, best)):
                    best = values
            else:
                position += length * (8 if kind == 14 else 4)
            if has_attributes:
                item()
            return None
        raise ValueError(f"R type {kind} is not expected in a text")

    item()
    return best


def r_database(path: Path) -> Iterator[list[str]]:
    """Yields the strings of each object in a lazy-load database, in file order."""
    data = path.read_bytes()
    position = 0
    while position < len(data):
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(data[position + 4 :])
        position = len(data) - len(unpacker.unused_data)
        yield read_r_strings(content)


def paragraphs(lines: list[str]) -> Iterator[str]:
    """Joins wrapped lines; an empty line ends a paragraph."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.strip())
        elif block:
            yield " ".join(block)
            block = []


def austen(opening: str) -> Callable[[Path], Iterator[str]]:
    """The novel of janeaustenr whose first line contains `opening`."""

    def extract(root: Path) -> Iterator[str]:
        folder = root / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data"
        for lines in r_database(folder / "Rdata.rdb"):
            if lines and opening in lines[0].upper():
                yield from paragraphs(lines)
                return
        raise ValueError(f"no novel opens with {opening!r}")

    return extract


def moby_dick(root: Path) -> Iterator[str]:
    folder = root / "r-cran-tokenizers/usr/lib/R/site-library/tokenizers/data"
    longest = max(r_database(folder / "Rdata.rdb"), key=lambda lines: sum(map(len, lines)))
    text = "\n".join(longest)
    # The book alone, without the distributor's notices before and after it.
    start, end = text.index("CHAPTER 1. Loomings"), text.index("End of Project Gutenberg")
    yield from paragraphs(text[start:end].splitlines())


# ---------------------------------------------------------------------------------------------
# SWORD modules: blocks of zlib-compressed OSIS markup, and an index of where each begins.


def sword_markup(root: Path, package: str) -> str:
    folder = root / package / "usr/share/sword/modules"
    text = []
    for index in sorted(folder.rglob("ot.?zs")) + sorted(folder.rglob("nt.?zs")):
        blocks = index.with_name(index.name[:-1] + "z")
        if not blocks.exists():
            continue
        data, places = blocks.read_bytes(), index.read_bytes()
        for start, length, _ in struct.iter_unpack("<III", places):
            if length:
                text.append(zlib.decompress(data[start : start + length]).decode("utf-8"))
    return "\n".join(text)


def osis_paragraphs(markup: str) -> Iterator[str]:
    """Plain paragraphs of OSIS markup: notes and tables go, paragraph milestones become breaks."""
    markup = re.sub(r"(?s)<(note|table)\b[^>]*?(?<!/)>.*?</\1>", " ", markup)
    markup = re.sub(r"(?s)<title\b[^>]*>.*?</title>", "\n", markup)
    markup = re.sub(r"<(div|l|lg|lb|chapter|item|list|milestone)\b[^>]*>", "\n", markup)
    markup = html.unescape(re.sub(r"<[^>]*>", "", markup))
    for line in markup.split("\n"):
        if len(line.split()) >= 4:
            yield line


def sword(package: str) -> Callable[[Path], Iterator[str]]:
    return lambda root: osis_paragraphs(sword_markup(root, package))


# ---------------------------------------------------------------------------------------------
# Plain texts.


def king_james(root: Path) -> Iterator[str]:
    """The text is stored in a form of its own, so the package's program prints it."""
    output = subprocess.run(
        [root / "bible-kjv/usr/bin/bible", "-p", root / "bible-kjv-text/usr/lib", "-f",
         "gen1:1-rev22:21"],
        stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    chapter: list[str] = []
    previous = ""
    for line in output.splitlines():
        place, _, verse = line.partition(" ")
        name = place.partition(":")[0]
        if name != previous and chapter:
            yield " ".join(chapter)
            chapter = []
        previous = name
        chapter.append(verse)
    yield " ".join(chapter)


def jargon(root: Path) -> Iterator[str]:
    path = root / "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    for text in paragraphs(lines):
        if len(text.split()) >= 5 and not re.search(r"[═─━_]{4}|  \d{4}", text):
            yield text


def devil(root: Path) -> Iterator[str]:
    path = root / "dict-devil/usr/share/dictd/devil.dict.dz"
    lines = gzip.decompress(path.read_bytes()).decode("latin-1").splitlines()
    yield from (text for text in paragraphs(lines[60:]) if len(text.split()) >= 5)


OLD = "public domain: the author died in {}"
DOCUMENTS = [
    Document("sense_and_sensibility", "Jane Austen, Sense and Sensibility", "r-cran-janeaustenr",
             OLD.format(1817), "train", 3, austen("SENSE AND SENSIBILITY")),
    Document("pride_and_prejudice", "Jane Austen, Pride and Prejudice", "r-cran-janeaustenr",
             OLD.format(1817), "train", 3, austen("PRIDE AND PREJUDICE")),
    Document("mansfield_park", "Jane Austen, Mansfield Park", "r-cran-janeaustenr",
             OLD.format(1817), "train", 3, austen("MANSFIELD PARK")),
    Document("emma", "Jane Austen, Emma", "r-cran-janeaustenr",
             OLD.format(1817), "train", 3, austen("EMMA")),
    Document("moby_dick", "Herman Melville, Moby-Dick", "r-cran-tokenizers",
             OLD.format(1891), "train", 2, moby_dick),
    Document("king_james_bible", "King James Bible", "bible-kjv-text",
             "public domain: published in 1611", "train", 1, king_james),
    Document("world_english_bible", "World English Bible with Deuterocanon",
             "sword-text-web", "public domain: dedicated by its translators", "train", 1,
             sword("sword-text-web")),
    Document("treasury_of_david", "C. H. Spurgeon, The Treasury of David", "sword-comm-tdavid",
             OLD.format(1892), "train", 1, sword("sword-comm-tdavid")),
    Document("henry_commentary", "Matthew Henry's Concise Commentary", "sword-comm-mhcc",
             "public domain: stated by the package", "train", 1, sword("sword-comm-mhcc")),
    Document("jargon_file", "The Jargon File 4.4.7", "jargon-text",
             "public domain: stated by the work", "train", 1, jargon),
    Document("devils_dictionary", "Ambrose Bierce, The Devil's Dictionary", "dict-devil",
             "public domain: stated by the work", "train", 1, devil),
    Document("persuasion", "Jane Austen, Persuasion", "r-cran-janeaustenr",
             OLD.format(1817), "validation", 1, austen("PERSUASION")),
    Document("northanger_abbey", "Jane Austen, Northanger Abbey", "r-cran-janeaustenr",
             OLD.format(1817), "test", 1, austen("NORTHANGER ABBEY")),
]  # fmt: skip

SPELLINGS = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\u00a0": " ",
                           "\t": " ", "…": "..."})  # fmt: skip


def clean(text: str) -> str:
    """One paragraph on one line, with plain quotes, dashes and single spaces."""
    text = text.translate(SPELLINGS).replace("-----", "-").replace("--", " - ")
    return re.sub(r"\s+", " ", re.sub(r"_([^_]{1,80})_", r"\1", text)).strip()


def download(folder: Path) -> Path:
    """Downloads and unpacks the pinned packages below `folder`; returns where they lie."""
    debs, unpacked = folder / "deb", folder / "unpacked"
    debs.mkdir(parents=True, exist_ok=True)
    unpacked.mkdir(exist_ok=True)
    for name, (version, expected) in PACKAGES.items():
        found = sorted(debs.glob(f"{name}_{version}_*.deb"))
        if not found:
            subprocess.run(["apt-get", "download", f"{name}={version}"], cwd=debs, check=True)
            found = sorted(debs.glob(f"{name}_{version}_*.deb"))
        digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
        if expected and digest != expected:
            raise SystemExit(f"{found[0].name} has sha256 {digest}, {expected} is pinned")
        subprocess.run(["dpkg", "-x", found[0], unpacked / name], check=True)
    return unpacked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/train/corpus"))
    out = parser.parse_args().out
    root = download(out).resolve()
    manifest = []
    for document in DOCUMENTS:
        kept = [line for line in map(clean, document.extract(root)) if line]
        text = "\n".join(kept) + "\n"
        (out / f"{document.name}.txt").write_text(text, encoding="utf-8")
        entry = {key: getattr(document, key)
                 for key in ("name", "title", "package", "licence", "split", "weight")}  # fmt: skip
        entry["version"] = PACKAGES[document.package][0]
        entry["characters"] = len(text)
        entry["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        manifest.append(entry)
        print(f"{document.split:10} {len(text) / 1e6:6.2f} M characters  {document.title}")
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
