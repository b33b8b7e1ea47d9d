"""README, docs/ and --help against the code: links, command lines, error sentences."""

import ast
import contextlib
import os
import re
import shlex
import subprocess
import sys

import click
import pytest
from helpers.places import ROOT

from bieff.cli import main
from bieff.features.schema import Status

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|<(https?://[^>\s]+)>")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`(bieff [^`]*)`(?!`)")
COMMAND = re.compile(r"(?:^|[\s/(])bieff\s+((?:-|[a-z]).*)$")


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def anchors(page):
    """What GitHub calls the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def wrong_links(page):
    """The relative links of a page that lead nowhere."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [match[0] or match[1] for match in LINK.findall(text)]
    for link in [*links, *(target for _, target in IMAGE.findall(text))]:
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or ROOT not in (file, *file.parents):
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(file):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page):
    assert list(wrong_links(page)) == []


def test_a_broken_link_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A head\n[a](gone.md) [b](#a-head) [c](#none) [d](https://a.b) ![e](f.png)"
    )
    assert list(wrong_links(page)) == [
        "gone.md: no such file",
        "#none: no such heading",
        "f.png: no such file",
    ]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_pictures_have_an_alternative_text(page):
    assert all(alt for alt, _ in IMAGE.findall(page.read_text(encoding="utf-8")))


def blocks(text):
    """Lines of the indented code, and of the fenced code that is no Python."""
    for language, body in FENCE.findall(text):
        if language in ("", "sh", "bash", "shell", "console"):
            yield from re.sub(r"\\\n\s*", " ", body).splitlines()
    rest = re.sub(r"\\\n\s*", " ", FENCE.sub("", text))
    yield from (line[4:] for line in rest.splitlines() if line.startswith("    "))


def commands(text):
    """(arguments, whether these are all) of every `bieff ...`; inline code leaves some out."""
    for line in blocks(text):
        # what is typed stands at the beginning, or behind a launcher
        starts = re.match(
            r"(\$ |\.venv/bin/|srun |torchrun .*|CUDA_\S+ |_\w+=\S+ )*bieff ", line
        )
        if starts and (found := COMMAND.search(line)):
            yield shlex.split(found.group(1), comments=True), True
    for said in INLINE.findall(FENCE.sub("", text)):
        words = shlex.split(re.sub(r"\s+", " ", said))[1:]
        alternatives = [word.split("|") for word in words]
        for i in range(max(map(len, alternatives))):
            yield [options[min(i, len(options) - 1)] for options in alternatives], False


def resolve(arguments):
    """The command that the arguments name, its name, and what is left of them."""
    command, name = main, "bieff"
    while isinstance(command, click.Group) and arguments:
        with click.Context(command, info_name=name) as context:
            name, command, arguments = command.resolve_command(context, list(arguments))
    return command, name, list(arguments)


def parse(arguments, *, is_whole):
    """Raises click's error if the command line is not understood."""
    command, name, rest = resolve(arguments)
    if {"-h", "--help", "--version"} & set(rest):
        return
    if is_whole:
        command.make_context(name, rest)
        return
    context = click.Context(command, info_name=name)
    with contextlib.suppress(click.BadOptionUsage):  # an option is named without its value
        command.make_parser(context).parse_args(rest)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_line_is_understood(page):
    wrong = []
    for arguments, is_whole in commands(page.read_text(encoding="utf-8")):
        try:
            parse(arguments, is_whole=is_whole)
        except click.ClickException as error:
            wrong.append(f"bieff {shlex.join(arguments)}: {error.format_message()}")
    assert wrong == []


def test_command_lines_are_found():
    found = [a for page in PAGES for a, _ in commands(page.read_text(encoding="utf-8"))]
    assert len(found) > 40
    assert {a[0] for a in found} >= {"extract", "train", "eval", "zeroshot", "store", "bench"}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("bieff extract --dataset k400 --frame-count 3", "--frame-count"),
        ("bieff extrakt --dataset k400", "extrakt"),
        ("bieff extract --frames 8", "--dataset"),  # left out, and required
        ("bieff store inf features/k400", "inf"),
        ("bieff extract --dataset k400 --frames eight", "eight"),
    ],
)
def test_a_wrong_command_line_is_noticed(line, error):
    [(arguments, is_whole)] = commands(f"text\n\n    {line}  # and a comment\n")
    with pytest.raises(click.ClickException) as raised:
        parse(arguments, is_whole=is_whole)
    assert error in raised.value.format_message()


def leaves(command=main, path=()):
    """Every command that is no group, by its whole name."""
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            yield from leaves(sub, (*path, name))
    else:
        yield pytest.param(command, path, id=" ".join(path))


@pytest.mark.parametrize(("command", "path"), list(leaves()))
def test_help_has_one_example_that_is_understood(command, path):
    said = " ".join((command.help or "").split())
    assert said.count("Example: ") == 1, said
    example = said.partition("Example: ")[2]
    assert example.startswith(f"bieff {' '.join(path)}")
    assert f"{example} ".startswith(f"bieff {' '.join(path)} ")
    parse(shlex.split(example)[1:], is_whole=True)


TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
TOPICS = {
    "Models": ("clip.py", "train/text/"),
    "Finding the videos": ("extract/catalogue.py", "extract/datasets/", "extract/shapes/"),
    "Bad videos": ("extract/decode/",),
    "Dask": ("extract/cluster.py",),
    "The extraction is slow": ("extract/",),
    "The store": ("features/",),
    "Training and evaluation": ("train/",),
    "Predicting, reporting, serving": ("apps/", "cli.py"),
}
"""Headings of docs/troubleshooting.md, and where their sentences come from; the first fits."""


CODE = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for part in ("apps", "extract", "features", "train", "cli.py", "clip.py")
    for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
}


def error_classes():
    """Names of BieffError and of every class under it, wherever in the code."""
    classes = [
        n for tree in CODE.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)
    ]
    bases = {c.name: {b.id for b in c.bases if isinstance(b, ast.Name)} for c in classes}
    found = {"BieffError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def text_of(node):
    """The text of an expression as far as it stands in the code, … for the rest; one line."""
    match node:
        case ast.Constant(value=str(text)):
            said = text
        case ast.JoinedStr(values=parts):
            said = "".join(map(text_of, parts))
        case ast.BinOp(left=left, right=right):
            said = text_of(left) + text_of(right)
        case _:
            said = "…"
    return re.sub(r"\s+", " ", said)


def error_sentences(tree, known):
    """What every error of the known classes says."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[said, *_]) if name in known:
                yield text_of(said)


def test_error_sentences_are_read_out_of_the_code():
    code = (
        'raise InputError(f"cannot read {path}: {error};  "\n    "check " + hint)\n'
        'raise ValueError("not for users")\nfailed = StoreError("no space")\n'
    )
    known = error_classes()
    assert {"InputError", "ConfigError", "StoreMissingError", "DecodeError"} <= known
    said = list(error_sentences(ast.parse(code), known))
    assert said == ["cannot read …: …; check …", "no space"]


def test_every_error_is_one_sentence_and_has_a_section():
    known, count = error_classes(), 0
    for place, tree in CODE.items():
        for said in error_sentences(tree, known):
            count += 1
            heading = next(name for name, starts in TOPICS.items() if place.startswith(starts))
            assert f"\n## {heading}\n" in TROUBLE, said
            assert re.match(r"[^A-Z]|[A-Z]{2}|Dask", said), said  # in lower case, but for names
            assert not re.search(r"[.!]$|\. [A-Z]", said), said
    assert count > 200


def test_what_the_page_explains_is_said_by_the_code():
    """Words in bold stand in the code, one by one; … is what depends on the case."""
    nodes = [node for tree in CODE.values() for node in ast.walk(tree)]
    said = "\n".join(text_of(n) for n in nodes if isinstance(n, ast.JoinedStr | ast.Constant))
    explained = set(re.findall(r"\*\*`([^`]+)`\*\*", TROUBLE.replace("\n  ", " ")))
    assert len(explained) > 40
    explained -= {status.name.lower() for status in Status}
    assert [words for words in explained if words.strip("… ") not in said] == []


def complete(**variables):
    code = "from bieff.cli import main; main(prog_name='bieff')"
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    ).stdout


def test_the_shell_completes_commands_and_options():
    assert "complete " in complete(_BIEFF_COMPLETE="bash_source")
    typed = {"_BIEFF_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "bieff ex"}
    assert complete(**typed) == "plain,extract\n"
    typed |= {"COMP_CWORD": "2", "COMP_WORDS": "bieff extract --sch"}
    assert complete(**typed) == "plain,--scheduler\n"


@pytest.mark.slow
def test_a_store_is_read_as_the_page_says(world, monkeypatch):
    """The Python of docs/store-format.md, on a store made by the commands."""
    monkeypatch.chdir(world)
    page = (ROOT / "docs" / "store-format.md").read_text(encoding="utf-8")
    [code] = [body for language, body in FENCE.findall(page) if language == "python"]
    names = {}
    exec(code, names)
    store = names["store"]
    videos, views, frames, dim = store["train/embeddings"].shape
    assert (views, frames) == (2, 8)
    assert store["train/labels"].shape == (videos,)
    assert store.attrs["recipe"]["dim"] == dim
