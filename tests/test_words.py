"""Keeps words that hide the meaning out of the documentation, sources, configs, launch scripts and tests.

Each word was once used in place of a standard term or of the American spelling. The test holds a list; it does not
replace reading.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AREAS = {
    "pages": ("*.md", "docs/**/*.md", ".github/**/*", "CITATION.cff"),
    "build": ("Makefile", ".ci/run", "pyproject.toml", "mkdocs.yml", ".pre-commit-config.yaml"),
    **{
        name: (f"{name}/**/*",)
        for name in ("ssd_dist", "pipelines", "toyset", "configs", "launch", "benchmarks", "tests")
    },
}
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".html", ".css", ".sh", ".slurm", ".json", ".toml", ".cff", ""}

# Pattern of the word -> what to write. Underscores separate words, so names are checked as well.
WORDS = {
    r"pictures?": "image",
    r"mend(s|ed|ing)?": "fix",
    r"gangs?": "workers, job",
    r"truths?": "ground truth",
    r"told|tells?|telling": "reported, printed, passed",
    r"(go|goes|going|went|gone) on": "resume, continue",
    r"anew": "again",
    r"whoever": "the user, anyone who",
    r"newcomers?": "contributor, user",
    r"to be had": "available",
    r"stand-?ins?|(stand|stands|standing|stood) in": "replacement, fake; replaces, is defined in",
    r"data[ _-]sets?": "dataset",
    r"blow-?ups?|blew up|blows up": "divergence, diverged",
    r"seal(s|ed|ing)?": "checksum file",
    r"judges?|judged|judging": "evaluate",
    r"(leave|leaves|leaving|left) away": "omit",
    r"looks? at|looking at|looked at": "reads, inspects",
    r"says?|said|saying": "print, report, state",
    r"hits|misses": "true positives, false negatives",
    r"suppress(ion|es|ed|ing)?": "NMS; ignore",
    r"wish(es)?": "request",
    r"chief( is|'s)? alone|alone the chief": "only the chief",
    r"(does|do|will|would|did) not do": "is not enough",
    r"litter": "temporary files",
    r"windows?": "crop",
    r"sheets?|cards?": "export summary",
    r"[a-z]*(recogn|normal|synchron|local|memor|serial|summar|maxim|minim|optim|initial|visual|organ|categor|general|"
    r"parallel|random|standard|util|vector|special|quant|character)is(e|es|ed|er|ers|ing|able|ation|ations)|"
    r"[a-z]*(colour|behaviour|neighbour|favour)[a-z]*|[a-z]*(centres?|centred|centring)|greys?|licence[sd]?|"
    r"[a-z]*(labell|cancell|modell)(ed|ing)|misspelt|analysed|analysing|artefacts?|catalogues?": "American spelling",
    r"(ms|s|seconds|bytes|[kKMG]i?B|images|inputs|boxes|objects|img) an? "
    r"(step|image|second|epoch|replica|worker|core|host|record|loop|shard|class|level|side|format)": "per",
}
# Checked in text only: pages, comments and docstrings. NumPy, Python and SVG have views of their own.
PROSE_WORDS = {r"views?": "augmented copy (`data.views` is defined in docs/your_own_data.md)"}

# Text that is removed before the search, and why it may stay.
ALLOWED = {
    r"ground[ _-]?truths?": "the standard term",
    r"recover_from_blowup|blowups\.jsonl": "a config key and a file name that runs and scripts depend on",
    r"\.seal\b": "the suffix of existing checksum files",
    r"--pictures\b|\"pictures\"": "a flag that scripts depend on",
    r"data\.views|views?=|view\d\d|`views?`|[\"']views?[\"']|views?:": "a config key, a manifest key, file names",
    r"ap_gain_if_mended": "a key of the analysis that ssd-evaluate and ssd-export write",
    r"`windows`|[\"']windows[\"']|\.windows\b|\bwindows[=:]": "a key of existing manifests",
    r"--card\b": "a CSS variable: the box around a section",
    r"--data_set\b|[\"']data_set[\"']|arguments\.data_set": "a flag and a key of recorded benchmark results",
    r"\.tell\(\)": "the method of Python's files",
    r"viewBox|viewport|memoryview": "names of SVG, CSS and Python",
    r"non[-_ ]?max(imum)?[-_ ]?suppression\w*": "the standard term, and TensorFlow's names",
    r"contextlib\.suppress|import suppress|, suppress\b|suppress\(": "Python's context manager",
    r"suppress_health_check": "an argument of Hypothesis",
    r"--window-size": "a flag of Chromium",
    r"stylesheet": "the term of HTML",
    r"playing[ _]cards": "the name of a dataset",
    r"\w*model[ _]cards?\w*": "the term of Mitchell et al. 2019, and a file name",
    r"Microsoft Windows": "the operating system",
    r"[\"'`]localisation[\"'`]": "a key of the analysis that ssd-evaluate and ssd-export write",
    r"was_cancelled|[\"']cancelled[\"']|CancelledError": "a key of Label Studio, states of Slurm, TensorFlow's error",
    r"converts labelled images to TFRecords": "the abstract in CITATION.cff",
}


def find_words(text: str, prose: bool) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, word, replacement) for each word of the list that the text contains."""
    allowed = re.compile("|".join(ALLOWED), re.IGNORECASE)
    words = WORDS | (PROSE_WORDS if prose else {})
    for number, line in enumerate(text.splitlines(), 1):
        rest = allowed.sub("", line)
        for word, replacement in words.items():
            for match in re.finditer(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", rest, re.IGNORECASE):
                yield number, match.group(), replacement


def read_prose(source: str) -> str:
    """Returns the comments and docstrings of a Python file on their lines, without the code."""
    lines = [""] * (source.count("\n") + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] += token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            literal = node.body[0]
            for number in range(literal.lineno - 1, literal.end_lineno):
                lines[number] = source.splitlines()[number]
    return "\n".join(lines)


def describe_hits(path: Path) -> list[str]:
    text = path.read_text()
    found = list(find_words(text, prose=path.suffix == ".md"))
    if path.suffix == ".py":
        words = re.compile("|".join(PROSE_WORDS), re.IGNORECASE)
        found += [entry for entry in find_words(read_prose(text), prose=True) if words.fullmatch(entry[1])]
    name = path.relative_to(ROOT)
    return [f"{name}:{line}: {word!r}; write: {better}" for line, word, better in sorted(found)]


@pytest.mark.parametrize("area", AREAS)
def test_the_words_do_not_occur(area):
    files = sorted({path for pattern in AREAS[area] for path in ROOT.glob(pattern) if path.is_file()})
    files = [path for path in files if path != Path(__file__)]  # this file contains the words
    files = [path for path in files if path.suffix in SUFFIXES and "__pycache__" not in path.parts]
    assert files
    hits = [hit for path in files for hit in describe_hits(path)]
    assert not hits, "\n" + "\n".join(hits)


@pytest.mark.parametrize(
    "planted",
    [
        "# Draws a picture.",
        "def read_truths(path):",
        "raise UsageError(f'{path}: mend the file')",
        "the run goes on from step 3",
        "self._tell(step)",
        "class DataSet: a data set",
        "run.judge.best",
        "the chief alone writes",
        "0.4 ms an image",
        "each window of the image",
        "print('stands in for the record')",
        "def test_unlabelled_images():",
        "the format was recognised",
        "the nearest centre, and its colour",
        "MIN_LABELLED_WIDTH = 3",
    ],
)
def test_a_planted_word_is_found(planted):
    assert list(find_words(planted, prose=False))


def test_a_view_is_found_in_text_and_not_in_code():
    source = '"""Renders the views."""\nrows = array.view(np.uint8)  # of a view\n'
    assert [line for line, _, _ in find_words(read_prose(source), prose=True)] == [1, 2]
    assert not list(find_words(source, prose=False))


@pytest.mark.parametrize(
    "text",
    [
        "assigns anchors to ground-truth objects",
        "ground_truth = read_ground_truth(path)",
        "train.recover_from_blowup: 2",
        "--pictures=predictions.png",
        "tf.image.combined_non_max_suppression(boxes)",
        "view00-00003-of-00008.tfrecord",
        "the mendable amendment of a pictured gangway",
        "otherwise, a precise optimistic analysis of the exercise",
        "task['was_cancelled']",
    ],
)
def test_standard_terms_are_allowed(text):
    assert not list(find_words(text, prose=True))
