"""Writes novels in which every passage stands twice, so that a small model learns to repeat what it has just read: the target of
`bench specdec --set copy` where drafts should pay most.

usage:  python quoted_text.py BOOKS_DIR OUT_DIR HELD_OUT.txt
        cargo xtask pretrain --config recipes/pretrain/quotes.toml --from crates/model/assets/tiny --text OUT_DIR --out ./quotes
"""
import pathlib, random, sys


def passages(text, rng):
    """Whole paragraphs, 300 characters or more together."""
    held, limit = [], rng.randint(300, 1000)
    for paragraph in text.split("\n\n"):
        held.append(" ".join(paragraph.split()))
        if sum(map(len, held)) >= limit:
            yield " ".join(held)
            held, limit = [], rng.randint(300, 1000)


def main(books, out, held_out):
    rng = random.Random(5)
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    for book in sorted(pathlib.Path(books).glob("*.txt")):
        if book.name != held_out:
            twice = [f"{passage}\n\n{passage}\n\n" for passage in passages(book.read_text(encoding="utf-8"), rng)]
            pathlib.Path(out, book.name).write_text("".join(twice), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
