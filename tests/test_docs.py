"""README, docs/ and --help against the code: links, command lines, error sentences."""

import contextlib
import os
import re
import shlex
import subprocess
import sys

import click
import pytest
from helpers import error_list as errors
from helpers.places import ROOT

from bieff.cli import main

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


def test_every_error_sentence_is_in_troubleshooting():
    before, listed, _ = errors.split_page(errors.PAGE.read_text(encoding="utf-8"))
    assert listed == errors.markdown(), "write it anew: python tests/helpers/error_list.py"
    assert "`no feature store at …" in before  # what it means stands before the list


def test_error_sentences_are_read_out_of_the_code(tmp_path):
    code = tmp_path / "code.py"
    code.write_text(
        'raise InputError(f"cannot read {path}: {error};  "\n    "check " + hint)\n'
        'raise ValueError("not for users")\nfailed = StoreError("no space")\n'
    )
    names = errors.error_classes()
    assert {"InputError", "ConfigError", "StoreMissingError", "DecodeError"} <= names
    said = [errors.sentence(call.args[0]) for call in errors.calls(code, names)]
    assert said == ["cannot read …: …; check …", "no space"]


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
