"""Makes the bundled corpus from the source archive: `python corpus/build.py ARCHIVE_FOLDER`.

Three JSONL files appear beside this script, one document per line with its `text` and where it comes from. What is
taken, why, and under which licence stands in PROVENANCE.md. The result is a pure function of the archive.

The TinyStories sample is lower-cased and its quotes are damaged by a wrong decoding. Both are repaired here, by rules:
a sentence and a quotation begin with a capital, `i` is `I`, and the names in `NAMES` (collected from the text itself:
words that follow "named", or that books write with a capital) are capitalised.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
Record = dict[str, str]

# --- TinyStories --------------------------------------------------------------------------------------------------

REPAIRS = (
    ("â€œ", '"'), ("â€™", "'"), ("â€˜", "'"), ("â€¦", "..."), ("â€“", "-"), ("â€”", "-"), ("â€", '"'),
    ("“", '"'), ("”", '"'), ("ã©", "é"), ("ã±", "ñ"), ("«", '"'), ("»", '"'),
)  # fmt: skip
_NAMES = """
abbie abby abi abigail adam alex alfie ali alice alicia alvin amanda amelia amy ana andy angie anna anne annie anny
ashley auntie ayla bella ben benny beth betsy betty bill billy binky bob bobbie bobby bobo bongo brad brian bruce
buster buzzy cari carl carla caroline chad charles charlie chirpie chirpy chloe chris christmas cindy claire clara
clarice clarissa clem coco connie cynthia daisy dan daniel danny dave david debby denise diana dina donna dory dotty
doug ducky elin ella elle ellen ellie elly elsie emilda emily emma emmy english eric ernie fido flo floppy flora frank
fred freddie freddy friday gabby garry gary gavin gemma george gigi gina god grace gracie hannah harper harry henry
isabel jack jackie jacky jacob jake james jamie jana jane janey janie jaqui jasmine jason jean jeff jemma jen jenna
jennifer jenny jerry jessi jessica jill jim jimmy jo joe joey john johnny johnson jojo jonas jose joseph josh josie
judy julia julie juliet june kaitlyn karen kari kate katie katy kayla kelly kim kimmy kitty larry laura leah leo
leticia libby lila lilly lily lina linda lisa liz liza lizzie lizzy lola louie louisa louise luce lucy luke lulu luna
mabel macy maddy mae maggie maia maisy mandy margaret margo maria mark marlon martin marty mary matt matty max maxi
maya mazzy meg mel meri mia michelle mickey micky mike millie milly mimi minnie molly mona monday moni nancy nathan
neenee nemo nina noah nora oliver ollie paige pam pandy paola patrick patty paul peggy percy pete peter petey pinky
piper pippin pixie polly rachel ralph randy remy rex richie ricky riley rita robbie robby roger rolly rory rosie rover
russel ruth ryan sabina saila sal sally sam sammy sandy santa sara sarah saturday seth shannon sharon shaun shauna
simon simone smith sophia sophie spanish spidey stan stella steve sue sunday susan susie suzie suzy sylvester ted
therese thomas thursday tilly tim timmy timothy tina toby todd tom tommy toni tony toto tuesday tweetie tweety wally
wednesday wilbur willie winnie zoey mr mrs
"""
_PARENTS = "mom mommy mum mummy mama dad daddy papa grandma grandpa granny nana"
_NOT_NAMES = """
a an the her his him it its them their out for to by from on down and or so someone something big all off upon me my
your our this that today little one two back
"""
_DETERMINERS = """
a an the his her my your their our its this that some two three many little big small no every another any each these
those old new red blue of brown kind and or loving
"""
_SPEECH = """
said asked cried shouted replied yelled exclaimed whispered answered called added laughed says shouts thought screamed
announced agreed begged smiled responded giggled barked chirped
"""
NAMES, NOT_A_NAME, DETERMINERS = (frozenset(words.split()) for words in (_NAMES, _NOT_NAMES, _DETERMINERS))
UNWANTED = re.compile(
    r"\b(sex\w*|naked|suicide|murder\w*|bloody|gun|guns|drunk|stupid|hell|kill\w*|knife|knives)\b", re.I
)

_parent = re.compile(r"\b(?:" + "|".join(_PARENTS.split()) + r")\b")
_speech_follows = re.compile(
    r"\s+(?:(?:the|his|her|their|my|a|an)\s+)?(?:[\w-]+\s+){0,3}?(?:" + "|".join(_SPEECH.split()) + r")\b"
)


def stories(path: Path) -> Iterator[Record]:
    """The sample's stories. A blank line parts paragraphs, a single line end mostly parts stories: see `_starts`."""
    text = path.read_text(encoding="utf-8")
    for wrong, right in REPAIRS:
        text = text.replace(wrong, right)
    found: list[list[str]] = []
    for group in _groups(text):
        if not found or _starts(found[-1], group):
            found.append(list(group))
        else:
            found[-1].extend(group)
    seen: set[str] = set()
    for number, paragraphs in enumerate(found):
        story = "\n\n".join(paragraphs)
        whole = len(story) >= 300 and story[-1] in '.!?"'
        if whole and story.isascii() and not UNWANTED.search(story) and story not in seen:
            seen.add(story)
            yield {"text": with_capitals(story), "source": "TinyStories", "id": f"tinystories-{number}"}


def _groups(text: str) -> Iterator[list[str]]:
    """Runs of lines of which every one but the first follows a blank line."""
    group: list[str] = []
    blank = True
    for line in text.split("\n"):
        line = re.sub(r"\s+", " ", line).strip()
        if line and group and not blank:
            yield group
            group = []
        if line:
            group.append(line)
        blank = not line
    yield group


def _starts(before: list[str], group: list[str]) -> bool:
    """Whether `group` begins a story of its own: it says so, or both it and what stands before are long enough."""
    size = sum(map(len, group))
    return bool(re.match(r"once\b|there once", group[0])) or (sum(map(len, before)) >= 400 and size >= 300)


def with_capitals(story: str) -> str:
    """Give a lower-cased story its capitals back."""
    names = NAMES | {
        name for name in re.findall(r"\b(?:named|name was|name is) ([a-z]{3,})\b", story) if name not in NOT_A_NAME
    }
    names = {n for n in names if not re.search(rf"\b(?:a|an|the|his|her|their|my) {n}\b", story) or n in NAMES}
    return "\n\n".join(_paragraph(paragraph, names) for paragraph in story.split("\n\n"))


def _paragraph(text: str, names: set[str]) -> str:
    text = re.sub(r"\bi\b", "I", text)
    text = re.sub(r"[a-z]+", lambda m: m[0].capitalize() if m[0] in names and _free(m) else m[0], text)
    text = _parent.sub(lambda m: m[0].capitalize() if _stands_alone(m) else m[0], text)
    text = re.sub(r"\b(Mrs?\. )([a-z])", lambda m: m[1] + m[2].upper(), text)
    return _sentences(text)


def _free(match: re.Match[str]) -> bool:
    """Whether the word is whole, and not the end of a contraction."""
    return match.start() == 0 or match.string[match.start() - 1] != "'"


def _stands_alone(match: re.Match[str]) -> bool:
    """`Mom said` and `asked Mom`, but `her mom`, `the kind mom` and `mom and dad`."""
    before = re.search(r"([\w']+) $", match.string[: match.start()])
    if before is None:
        return True
    word = before[1].lower()
    return not word.endswith("'s") and word not in DETERMINERS


def _sentences(text: str) -> str:
    """Capitals at the begin of sentences and quotations. A quotation that ends in ! or ? may go on: `"no!" he said`."""
    letters = list(text)
    inside, capital = False, True
    for at, letter in enumerate(text):
        if letter == '"':
            inside = not inside
            if inside:
                before = text[:at].rstrip()
                capital = not before or before[-1] in ',.:;!?"'
            elif at and text[at - 1] in "!?":
                capital = not _speech_follows.match(text, at + 1)
            else:
                capital = at > 0 and text[at - 1] == "."
        elif letter in ".!?":
            capital = text[at + 1 : at + 2] in ("", " ", '"', "'") and not re.search(r"\b[Mm]rs?$", text[:at])
        elif letter.isalnum():
            if capital:
                letters[at] = letter.upper()
            capital = False
    return "".join(letters)


# --- African Storybook --------------------------------------------------------------------------------------------


def storybook(path: Path, english: set[str]) -> Iterator[Record]:
    """The English stories under CC BY with their makers; pages become paragraphs, headings and footers go."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        fields = dict(re.findall(r"^\* ([A-Za-z ]+): *(.*?) *$", row["text"], re.M))
        if row["lang"] != "en" or fields.get("License") != "[CC-BY]":
            continue
        body = re.sub(r"^\* .*$", "", row["text"], flags=re.M)
        title = re.search(r"^# *(.*)$", body, re.M)
        pages = re.split(r"^##.*$", re.sub(r"^# .*$", "", body, flags=re.M), flags=re.M)
        text = "\n\n".join(filter(None, (plain(page) for page in pages)))
        words = re.findall(r"[a-z]+", text.lower())
        if len(text) < 250 or sum(word in english for word in words) < 0.93 * len(words):
            continue
        yield {
            "text": text, "source": "African Storybook", "id": row["id"], "licence": "CC BY 4.0",
            "title": title[1].strip() if title else "", "author": fields.get("Text", ""),
            "illustrator": fields.get("Illustration", ""),
            "translator": fields.get("Translated By") or fields.get("Translation") or "",
            "adaptation": fields.get("Adaptation", ""),
        }  # fmt: skip


def plain(text: str) -> str:
    """One paragraph of plain text: no line ends, no emphasis marks, ASCII quotes and dashes."""
    for right, wrongs in (("'", "\u2018\u2019´"), ('"', "\u201c\u201d"), ("-", "\u2013\u2014")):
        text = re.sub(f"[{wrongs}]", right, text)
    text = re.sub(r"\[[^\]]*\]", "", text.replace("*", "").replace("--", " - "))
    text = re.sub(r"(?<!\w)_|_(?!\w)", "", text)
    return re.sub(r"\s+", " ", text).strip()


# --- Public-domain classics ---------------------------------------------------------------------------------------

BOOKS = {
    ("The Brothers Grimm", "Grimms' Fairy Tales"): ("Jacob Grimm (1785-1863), Wilhelm Grimm (1786-1859); English by "
                                                    "Edgar Taylor (1793-1839) and Marian Edwardes"),
    ("L. Frank Baum", "The Wonderful Wizard of Oz"): "L. Frank Baum (1856-1919)",
    ("Oscar Wilde", "The Happy Prince & Other Tales"): "Oscar Wilde (1854-1900)",
}  # fmt: skip


def classics(path: Path) -> Iterator[Record]:
    """Fairy tales in plain English; every tale or chapter is a document."""
    with path.open(encoding="utf-8") as lines:
        books = {(row["author"], row["title"]): row["text"] for row in map(json.loads, lines)}
    for (author, title), makers in BOOKS.items():
        parts = re.split(r"^#+ *(.*)$", books[author, title], flags=re.M)
        for heading, body in zip(parts[1::2], parts[2::2], strict=True):
            paragraphs = filter(None, (plain(paragraph) for paragraph in body.split("\n\n")))
            text = "\n\n".join(p for p in paragraphs if re.search(r"[a-z]", p))
            if author == "The Brothers Grimm":
                text = double_quotes(text)
            if len(text) < 600 or re.search(r"\bjews?\b", heading + text, re.I):
                continue
            name = re.sub(r"^\d+\. *", "", heading.strip(" ."))
            yield {"text": text, "source": title, "title": name, "author": makers, "licence": "public domain"}


def double_quotes(text: str) -> str:
    """Turn British single quotation marks into double ones; apostrophes stay."""
    text = re.sub(r"(?:(?<=^)|(?<=[\s(-]))'(?!(?:tis|twas|em)\b)(?=\w)", '"', text, flags=re.M)
    return re.sub(r"(?<=[.,!?;:-])'(?=[\s).,;-]|$)", '"', text, flags=re.M)


def write(name: str, records: list[Record]) -> None:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (HERE / name).write_text(lines, encoding="utf-8", newline="\n")
    print(f"{name}: {len(records)} documents, {sum(len(r['text']) for r in records)} characters")


def main(archive: Path) -> None:
    tiny = list(stories(archive / "tinystories_sample.txt"))
    tales = list(classics(archive / "classic_books.jsonl"))
    english = {word for record in tiny + tales for word in re.findall(r"[a-z]+", record["text"].lower())}
    write("tinystories.jsonl", tiny)
    write("african_storybook.jsonl", list(storybook(archive / "african_storybook_ccby.jsonl", english)))
    write("classics.jsonl", tales)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} ARCHIVE_FOLDER")
    main(Path(sys.argv[1]))
